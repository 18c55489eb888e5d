// The controls and the texts of the page, and the updates after a change.
const MAX_SAMPLES = 12;

function refresh() {
  drawCurves();
  drawTable();
  fadeParallel();
  drawSamples();
}

function drawSamples() {
  const numbers = visible().filter((number) => runs[number].sample).sort(byOutcome);
  byId("samples-part").hidden = !runs.some((run) => run.sample);
  byId("samples-note").textContent = numbers.length > MAX_SAMPLES
    ? `These are the best ${MAX_SAMPLES} of the ${numbers.length} selected runs that have a sample. Select or filter the runs to see others.` : "";
  byId("samples").replaceChildren(...numbers.slice(0, MAX_SAMPLES).map((number) =>
    element("figure", {}, element("figcaption", {}, runs[number].label, element("span", { className: "quiet" }, ` ${fixed(runs[number].outcome)}`)),
      element("pre", { tabIndex: 0 }, runs[number].sample))));
}

function buildWords() {
  byId("words").hidden = !data.sentences.length;
  byId("value").textContent = `Based on ${data.value}:`;
  const [headers, ...settings] = data.groups;
  byId("groups").hidden = !settings.length;
  if (settings.length) {
    const numbers = (name, texts) => texts.map((text) => element(name, { className: "number" }, text));
    const [first, ...others] = headers;
    byId("groups").replaceChildren(
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, first), ...numbers("th", others))),
      element("tbody", {}, ...settings.map(([label, ...texts]) => element("tr", {}, element("th", { scope: "row" }, label), ...numbers("td", texts)))));
  }
  byId("sentences").replaceChildren(...data.sentences.map((sentence) => element("li", {}, sentence)));
  const counts = new Map();
  for (const run of runs) counts.set(run.status, (counts.get(run.status) || 0) + 1);
  const best = bestRuns(1)[0];
  byId("summary").textContent = [...counts].map(([status, count]) => `${count} ${status}`).join(", ") +
    (best === undefined || data.sorted === null ? "" : `. Best ${data.value}: ${fixed(runs[best].outcome)}, ${runs[best].label}`);
}

function buildLineage() {
  const forked = [...runs.keys()].filter((number) => runs[number].parent);
  byId("lineage-part").hidden = !forked.length;
  const children = new Map();
  for (const number of forked) {
    const origin = runs[number].origin;
    if (origin !== null && origin !== number) children.set(origin, [...(children.get(origin) || []), number]);
  }
  const seen = new Set();  // a stranger's run folders may name each other as parents, in a circle
  const item = (number) => {
    seen.add(number);
    const run = runs[number];
    const below = (children.get(number) || []).filter((child) => !seen.has(child)).map(item);
    return element("li", {}, `${run.label} (${run.status}, ${fixed(run.outcome)})`,
      ...(run.parent ? [element("span", { className: "quiet" }, ` ${run.parent}`)] : []), ...(below.length ? [element("ul", {}, ...below)] : []));
  };
  const roots = [...new Set([...children.keys(), ...forked])].filter((number) => runs[number].origin === null || runs[number].origin === number);
  const items = roots.map(item);
  for (const number of forked) if (!seen.has(number)) items.push(item(number));
  byId("lineage").replaceChildren(element("ul", {}, ...items));
}

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
}

function bind(id, key, change = (control) => control.value) {
  const control = byId(id);
  control.addEventListener(control.type === "range" || control.type === "search" ? "input" : "change", () => {
    state[key] = change(control);
    scheduleRefresh();
  });
}

// A burst of changes, as from a slider, is drawn once.
let pending = 0;
function scheduleRefresh() {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(() => {
    showSmoothing();
    refresh();
  });
}

const showSmoothing = () => { byId("smooth-text").textContent = state.smooth ? `${state.smooth}% of the run` : "off"; };

function buildControls() {
  const groups = new Set(runs.map((run) => run.group)).size, settings = data.keys.filter(({ key }) => key !== "seed");
  const replicated = groups < runs.length;
  const mostImportant = data.importance.find(({ key }) => key !== "seed");
  if (runs.length > 7 && settings.length) state.color = replicated && groups <= 7 ? "group" : (mostImportant || settings[0]).key;
  if (data.families.length) state.color = "family";
  options(byId("metric"), data.metrics.map((name) => [name, name]), state.metric);
  options(byId("x"), data.axes.map((axis) => [axis, { step: "steps", tokens: "tokens", flops: "FLOPs", seconds: "time" }[axis]]), state.x);
  options(byId("color"), [["run", "run"], ...(data.families.length ? [["family", "trunk and branches"]] : []), ...(replicated ? [["group", "setting (all seeds)"]] : []), ...data.keys.map(({ key, name }) => [key, name])], state.color);
  byId("seeds-label").hidden = !replicated;
  for (const key of ["metric", "x", "color", "seeds"]) bind(key, key);
  for (const key of ["logx", "logy", "whole"]) bind(key, key, (control) => control.checked);
  bind("smooth", "smooth", (control) => Number(control.value));
  bind("filter", "words", (control) => control.value.toLowerCase().split(/\s+/).filter(Boolean));
  byId("all").addEventListener("click", () => checkOnly(runs.keys()));
  byId("none").addEventListener("click", () => checkOnly([]));
  byId("best").addEventListener("click", () => checkOnly(bestRuns(10)));
  byId("unbrush").addEventListener("click", () => { state.brushed = null; refresh(); });
  showSmoothing();
}

buildWords();
buildControls();
buildTable();
buildImportance();
buildLineage();
keyRows(byId("common"), Object.entries(data.common), new Set());
refresh();
const curvesPlot = byId("curves");
curvesPlot.on("plotly_hover", ({ points: [point] }) => mark(point.data.uid));
curvesPlot.on("plotly_unhover", () => mark(null));
if (!byId("settings").hidden) {
  byId("parallel").on("plotly_selected", brush);
  byId("parallel").on("plotly_hover", ({ points: [point] }) => highlight(point.customdata));
  byId("parallel").on("plotly_unhover", () => highlight(null));
}

// Highlights the curve under the pointer and its row in the table.
function mark(uid) {
  const number = uid && uid.startsWith("run") ? Number(uid.slice(3)) : null;
  for (const [other, { row }] of rows) row.classList.toggle("hot", other === number);
  highlight(number);
}

darkScheme.addEventListener("change", refresh);
// Prints in the light theme even if the screen uses the dark one.
addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; refresh(); });
addEventListener("afterprint", () => { delete document.documentElement.dataset.theme; refresh(); });
