// The curves: one SVG path per run, so that they are sharp on paper and need no WebGL. Classes highlight them.
const PAPER_WIDTH = 680;  // pixels between the margins of a printed page
const MANY = 40;  // with more curves, they are drawn thinner
// The buttons are listed because plotly.js by default also has one that uploads the chart.
const plotOptions = {
  displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]], toImageButtonOptions: { scale: 3, filename: "curves" },
};

function palette() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { text: of("--text"), quiet: of("--quiet"), grid: of("--grid"), paper: of("--paper"), strong: of("--strong") };
}

function baseLayout() {
  const colors = palette(), narrow = innerWidth < 600;
  const axis = { gridcolor: colors.grid, zeroline: false, linecolor: colors.quiet, ticks: "outside", tickcolor: colors.quiet, automargin: true };
  return {
    ...(document.documentElement.dataset.theme ? { width: PAPER_WIDTH, autosize: false } : { autosize: true }),
    font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13, color: colors.text },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", hoverdistance: 30,
    margin: { l: narrow ? 48 : 64, r: 12, t: 28, b: 48 }, axis,
    hoverlabel: { bgcolor: colors.paper, bordercolor: colors.quiet, font: { color: colors.text }, align: "left", namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colors.quiet, activecolor: colors.text },
  };
}

function quantile(sorted, share) {
  const place = share * (sorted.length - 1), low = Math.floor(place);
  return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}
const ascending = (values) => values.filter(Number.isFinite).sort((a, b) => a - b);

// Returns a range for the y axis that leaves out the steep first steps and a few diverged runs; null for the whole range.
function typicalRange(curves) {
  if (state.whole || !curves.length) return null;
  const tops = ascending(curves.map(({ y }) => quantile(ascending(y.slice(Math.floor(y.length / 10))), 0.97)));
  const all = ascending(curves.flatMap(({ y, low, high }) => [...y, ...(low || []), ...(high || [])]));
  const quarter = quantile(tops, 0.75), lowest = all[0], highest = all[all.length - 1];
  if (!tops.length) return null;
  const top = Math.min(highest, quarter + 1.5 * (quarter - quantile(tops, 0.25)) + 0.15 * (quarter - lowest));
  if (!(top > lowest) || highest - top < 0.3 * (top - lowest)) return null;
  const margin = 0.04 * (top - lowest);
  return { range: state.logy && lowest > 0 ? [Math.log10(lowest) - 0.02, Math.log10(top)] : [lowest - margin, top], top };
}

function traceOf(curve, look, text, scale, uid, width) {
  return {
    type: "scatter", mode: curve.x.length > 1 ? "lines" : "markers", uid, x: curve.x.map((x) => x / scale), y: curve.y, name: uid,
    line: { color: look.color, dash: look.dash, width }, marker: { color: look.color, size: 6 }, meta: plain(text),
    hovertemplate: `%{meta}<br>${plain(state.metric)} %{y:.5~g}<br>${state.x} %{x:.4~s}<extra></extra>`,
  };
}

// The unsmoothed values, drawn faintly behind the curves, with one trace per colour.
function faintTraces(numbers, looks, scale) {
  const byColor = new Map();
  for (const number of numbers) {
    const found = series(number, state.metric);
    if (!found) continue;
    const trace = byColor.get(looks[number].color) || { x: [], y: [] };
    trace.x.push(...onAxis(number, found.step, state.x).map((x) => x / scale), null);
    trace.y.push(...found.y, null);
    byColor.set(looks[number].color, trace);
  }
  return [...byColor].map(([color, { x, y }], index) => ({
    type: "scatter", mode: "lines", uid: `faint${index}`, name: `faint${index}`, x, y, hoverinfo: "skip", connectgaps: false,
    line: { color, width: 1 }, opacity: numbers.length > 10 ? 0.12 : 0.3,
  }));
}

function bandTraces(found, look, scale, index) {
  const x = found.x.map((value) => value / scale);
  return {
    type: "scatter", mode: "lines", uid: `band${index}`, name: `band${index}`, hoverinfo: "skip", fill: "toself", line: { width: 0 },
    x: [...x, ...x.slice().reverse()], y: [...found.high, ...found.low.slice().reverse()],
    fillcolor: look.color, opacity: 0.2,
  };
}

function drawCurves() {
  const looks = coloring(), numbers = visible();
  const averaged = state.seeds !== "off", grouped = new Map();
  for (const number of numbers) {
    const key = averaged ? runs[number].group : number;
    grouped.set(key, [...(grouped.get(key) || []), number]);
  }
  const drawn = [...grouped].map(([key, members]) => ({ key, members, curve: averaged ? band(members) : curve(members[0]) }))
    .filter((one) => one.curve && one.curve.x.some(Number.isFinite));
  let most = 0;
  for (const { curve: { x } } of drawn) most = Math.max(most, x[x.length - 1]);
  const [scale, unit] = AXES[state.x].scale(most);
  const width = drawn.length > MANY ? 1.1 : 2;
  const traces = [];
  if (state.smooth && !averaged) traces.push(...faintTraces(numbers, looks.of, scale));
  if (averaged) traces.push(...drawn.filter((one) => one.curve.size > 1).map((one) => bandTraces(one.curve, looks.of[one.members[0]], scale, one.key)));
  traces.push(...drawn.map(({ key, members, curve: found }) => traceOf(found, looks.of[members[0]],
    averaged ? groupLabel(members, found.size) : runs[members[0]].label, scale, `${averaged ? "group" : "run"}${key}`, width)));
  const typical = typicalRange(drawn.map((one) => one.curve));
  const layout = baseLayout(), { axis } = layout;
  delete layout.axis;
  layout.xaxis = { ...axis, title: { text: AXES[state.x].title + unit }, type: state.logx ? "log" : "linear" };
  layout.yaxis = { ...axis, title: { text: plain(titleOf(state.metric)) }, type: state.logy ? "log" : "linear" };
  if (typical) Object.assign(layout.yaxis, { range: typical.range, autorange: false });
  // A zoom by hand is kept until the metric, an axis or a scale changes.
  layout.uirevision = [state.metric, state.x, state.logx, state.logy, state.whole].join(" ");
  Plotly.react("curves", traces, layout, plotOptions);
  drawLegend(looks, drawn);
  const notes = [];
  if (!drawn.length) notes.push(numbers.length ? `None of the selected runs has ${state.metric}.` : "No run is selected.");
  if (typical) notes.push(`Values above ${valueText(Number(typical.top.toPrecision(3)))} are cut off. Choose “whole range” or double-click to see them.`);
  if (averaged && drawn.some((one) => one.curve.size > 1)) notes.push("A mean ends where its shortest run ends.");
  const left = averaged ? numbers.filter((number) => !counts(number)).length : 0;
  if (left) notes.push(`Not in the means: ${left} run${left > 1 ? "s" : ""} without a value of ${data.value}.`);
  if (state.smooth) notes.push(`Each point is an exponential moving average over ${state.smooth}% of its run.`);
  byId("note").textContent = notes.join(" ");
}

const groupLabel = (members, size) => `${runs[members[0]].setting} (${size} seed${size > 1 ? "s" : ""})`;

function drawLegend(looks, drawn) {
  const few = drawn.length <= 8 && (state.color === "run" || state.color === "group");
  const entries = few
    ? drawn.map(({ members, curve: found }) => ({ ...looks.of[members[0]], value: state.seeds === "off" ? runs[members[0]].label : groupLabel(members, found.size) }))
    : looks.legend;
  const name = few ? "" : (data.keys.find(({ key }) => key === state.color) || { name: "" }).name;
  byId("legend").replaceChildren(...(name ? [element("span", { className: "quiet" }, name)] : []),
    ...entries.map((entry) => element("span", {}, swatch(entry), valueText(entry.value))));
}

function swatch({ color, dash }) {
  const made = element("span", { className: "swatch", ariaHidden: "true" });
  made.style.borderTopColor = color;
  made.style.borderTopStyle = { solid: "solid", dash: "dashed", dot: "dotted" }[dash];
  return made;
}

// Dims all curves but one run's in both pictures; null ends the highlight.
function highlight(number) {
  const keys = number === null ? [] : [`run${number}`, `group${runs[number].group}`];
  for (const plot of [byId("curves"), byId("parallel")]) {
    const all = [...plot.querySelectorAll(".scatterlayer > g.trace")];
    const hot = all.filter((group) => keys.some((key) => group.classList.contains(`trace${key}`)));
    plot.classList.toggle("dimmed", hot.length > 0);
    for (const group of all) group.classList.toggle("hot", hot.includes(group));
    for (const group of hot) group.parentNode.append(group);
  }
}
