// Settings and outcome: parallel coordinates that select runs, and how much each setting explains alone.
const MAX_AXES = 12;

// Returns, for a vertical axis: a position from 0 to 1 for each run, the ticks, and the number of levels.
function scaleOf(values, log) {
  const known = values.filter((value) => value !== null);
  const levels = [...new Set(known)].sort(compareValues);
  if (!levels.every(isNumber)) {
    const at = (value) => (levels.length > 1 ? levels.indexOf(value) / (levels.length - 1) : 0.5);
    const every = Math.ceil(levels.length / 12);
    return { levels: levels.length, places: values.map(at), ticks: levels.filter((_, index) => index % every === 0).map((value) => [at(value), value]) };
  }
  const place = log && needsLogScale(levels) ? Math.log : (value) => value;
  const low = place(levels[0]), span = place(levels[levels.length - 1]) - low;
  const at = (value) => (span ? (place(value) - low) / span : 0.5);
  const back = (share) => (place === Math.log ? Math.exp(low + share * span) : low + share * span);
  const ticks = levels.length <= 8 ? levels.map((value) => [at(value), valueText(value)])
    : [0, 0.25, 0.5, 0.75, 1].map((share) => [share, valueText(Number(back(share).toPrecision(3)))]);
  // A tick that would overlap the one before it is left out.
  const apart = ticks.reduce((kept, tick) => (kept.length && tick[0] - kept[kept.length - 1][0] < 0.045 ? kept : [...kept, tick]), []);
  return { levels: levels.length, places: values.map((value) => (value === null ? null : at(value))), ticks: apart };
}

function parallelAxes() {
  const byShare = new Map(data.importance.map(({ key, share }) => [key, share]));
  const settings = data.keys.map(({ key, name }, index) => ({ key, name, values: runs.map((run) => run.values[index]) }))
    .filter(({ key }) => key !== "seed");
  // The settings that explain most are next to the outcome.
  const chosen = settings.sort((a, b) => (byShare.get(b.key) ?? -1) - (byShare.get(a.key) ?? -1)).slice(0, MAX_AXES).reverse();
  return [...chosen, { key: "outcome", name: data.value, values: runs.map((run) => run.outcome) }]
    .map((axis) => ({ ...axis, ...scaleOf(axis.values, axis.key !== "outcome") }));
}

let parallelTheme = null;
function drawParallel() {
  parallelTheme = theme();
  const axes = parallelAxes();
  byId("settings").hidden = axes.length < 2 || runs.length < 3;
  if (byId("settings").hidden) return;
  const layout = baseLayout(), colors = palette();
  const stops = SCALE[theme()].slice();
  if (theme() === "dark") stops.reverse();
  byId("ranks").replaceChildren(...stops.map((color) => swatch({ color, dash: "solid" })));
  const outcomes = axes[axes.length - 1];
  // Colours follow the rank, so that a few bad runs do not hide the differences between the good ones.
  const ranked = [...runs.keys()].filter((number) => runs[number].outcome !== null).sort(byOutcome);
  const rank = new Map(ranked.map((number, index) => [number, index / Math.max(1, ranked.length - 1)]));
  const order = [...runs.keys()].sort((a, b) => (rank.get(b) ?? 2) - (rank.get(a) ?? 2));  // the best on top
  const traces = order.map((number) => {
    const color = rank.has(number) ? mixed(stops, rank.get(number)) : colors.quiet;
    // Runs with the same value are drawn side by side, the best lowest, so that they do not hide each other.
    const beside = (axis) => (axis === outcomes || axis.levels > 12 ? 0 : ((rank.get(number) ?? 1) - 0.5) * Math.min(0.08, 0.4 / axis.levels));
    const at = axes.map((axis, index) => [index, axis.places[number] + beside(axis), axis.places[number]]).filter(([, , place]) => place !== null);
    return {
      type: "scatter", mode: "lines+markers", uid: `run${number}`, name: `run${number}`, x: at.map(([x]) => x), y: at.map(([, y]) => y),
      customdata: at.map(() => number), line: { color, width: runs.length > MANY ? 1 : 2, dash: rank.has(number) ? "solid" : "dot" },
      marker: { color, size: runs.length > MANY ? 4 : 6 }, opacity: 0.85,
      selected: { marker: { opacity: 1 } }, unselected: { marker: { opacity: 1 } },
      meta: plain(`${runs[number].label}: ${fixed(runs[number].outcome)}`), hovertemplate: "%{meta}<extra></extra>",
    };
  });
  const font = { size: layout.font.size - 1 };
  const annotations = axes.flatMap(({ name, ticks }, index) => [
    { x: index, y: 1.06, text: plain(name), showarrow: false, yanchor: "bottom", font: { size: layout.font.size, color: colors.strong } },
    ...ticks.map(([place, text]) => ({
      x: index, y: place, text: plain(text.length > 18 ? `${text.slice(0, 17)}…` : text), showarrow: false, xanchor: index === axes.length - 1 ? "left" : "right",
      xshift: index === axes.length - 1 ? 6 : -6, font: { ...font, color: colors.strong }, bgcolor: colors.paper, opacity: 0.85,
    })),
  ]);
  delete layout.axis;
  Object.assign(layout, {
    annotations, dragmode: "select", selectdirection: "any", margin: { ...layout.margin, l: 24, r: 24, t: 12, b: 8 },
    xaxis: { visible: false, range: [-0.45, axes.length - 1 + 0.45], fixedrange: true },
    yaxis: { visible: false, range: [-0.08, 1.16], fixedrange: true },
    shapes: axes.map((_, index) => ({ type: "line", x0: index, x1: index, y0: 0, y1: 1, layer: "below", line: { color: colors.quiet, width: 1 } })),
    selections: [],
  });
  Plotly.react("parallel", traces, layout, { ...plotOptions, displayModeBar: false });
  fadeParallel();
}

// Fades the runs that are not selected. It sets classes, because drawing hundreds of lines again would be slow.
function fadeParallel() {
  if (parallelTheme !== theme()) return void drawParallel();
  const shown = new Set(visible().map((number) => `tracerun${number}`));
  for (const group of byId("parallel").querySelectorAll(".scatterlayer > g.trace")) {
    group.classList.toggle("faded", ![...group.classList].some((name) => shown.has(name)));
  }
  byId("unbrush").hidden = state.brushed === null;
}

function brush(event) {
  if (!event || !event.points || !event.points.length) return;
  const inside = new Set(event.points.map((point) => point.customdata));
  state.brushed = new Set([...inside].filter((number) => !state.brushed || state.brushed.has(number)));
  refresh();
}

const pText = (p) => (p === null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));

function buildImportance() {
  if (!data.importance.length) return;
  byId("importance-part").hidden = false;
  const head = ["setting", "explains alone", "chance", "p", "effect", "p", "values", "settings"].map((name) => element("th", { scope: "col" }, name));
  const rows = data.importance.map(({ key, share, chance, p, size, effect_p: effectP, levels, runs: count }) => {
    const bar = element("span", { className: "bar" });
    bar.style.width = `${Math.max(1, 100 * share)}px`;
    return element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, bar, ` ${Math.round(100 * share)}%`),
      ...[`${Math.round(100 * chance)}%`, pText(p), valueText(size === null ? null : Number(size.toPrecision(2))), pText(effectP), levels, count].map((text) => element("td", { className: "number" }, text)));
  });
  byId("importance").replaceChildren(element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}
