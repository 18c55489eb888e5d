// The page's data: curves are unpacked when first drawn, smoothed, averaged over seeds, and coloured.
const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const byId = (id) => document.getElementById(id);
const state = {
  metric: data.metrics[0] ?? data.metric, x: "step", color: "run", seeds: "off", smooth: 0, logx: false, logy: false, whole: false,
  checked: new Set(runs.keys()), brushed: null, words: [], sort: null, descending: false,
};

const AXES = {
  step: { title: "optimizer steps", scale: () => [1, ""] },
  tokens: { title: "tokens", scale: () => [1, ""] },
  flops: { title: "training FLOPs", scale: () => [1, ""] },
  seconds: {
    title: "time",
    scale: (most) => (most > 2 * 86400 ? [86400, " (days)"] : most > 7200 ? [3600, " (hours)"] : most > 120 ? [60, " (minutes)"] : [1, " (seconds)"]),
  },
};
const UNITS = { "train/loss": "nats/token", "val/loss": "nats/token", step_time_ms: "ms", memory_gb: "GB" };
const titleOf = (metric) => (UNITS[metric] ? `${metric} (${UNITS[metric]})` : metric);

function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float64Array.from({ length: bytes.length / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

const unpacked = new Map();
function once(key, make) {
  if (!unpacked.has(key)) unpacked.set(key, make());
  return unpacked.get(key);
}

function series(number, metric) {
  return once(`${number} ${metric}`, () => {
    const packed = runs[number].series[metric];
    if (!packed) return null;
    const [step, y, meanStep, mean] = packed.map(unpack);
    return step.length ? { step, y, meanStep: mean.length ? meanStep : step, mean: mean.length ? mean : y } : null;
  });
}

function interpolate(xs, ys, x) {
  let low = 0, high = xs.length - 1;
  if (x <= xs[low]) return ys[low];
  if (x >= xs[high]) return ys[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= x) low = middle; else high = middle;
  }
  return ys[low] + ((ys[high] - ys[low]) * (x - xs[low])) / (xs[high] - xs[low]);
}

// The positions of steps on another axis.
function onAxis(number, steps, axis) {
  if (axis === "step") return Array.from(steps);
  const xs = once(`${number} axis step`, () => unpack(runs[number].axes.step));
  const ys = once(`${number} axis ${axis}`, () => unpack(runs[number].axes[axis]));
  return Array.from(steps, (step) => interpolate(xs, ys, step));
}

// A debiased exponential moving average. Its memory is a share of the run, so it does not depend on the logging interval.
function smoothed(steps, ys, share) {
  const memory = share * steps[steps.length - 1];
  if (!memory) return Array.from(ys);
  let sum = 0, weight = 0;
  return Array.from(ys, (y, index) => {
    const kept = index ? Math.exp(-(steps[index] - steps[index - 1]) / memory) : 0;
    sum = kept * sum + y;
    weight = kept * weight + 1;
    return sum / weight;
  });
}

function curve(number) {
  const found = series(number, state.metric);
  if (!found) return null;
  if (!state.smooth) return { x: onAxis(number, found.step, state.x), y: Array.from(found.y) };
  const y = smoothed(found.meanStep, found.mean, state.smooth / 100);
  return { x: onAxis(number, found.meanStep, state.x), y };
}

// Whether a run is part of the mean of its setting. A diverged run is not, and neither is one that was never evaluated
// where the runs are compared. If no run has such a value yet, all count.
const noValues = runs.every((run) => run.outcome === null);
const counts = (number) => noValues || runs[number].outcome !== null;

// The mean of curves, over the range where all of them have values; `rows` has their values at each point.
function meanOf(curves) {
  const start = Math.max(...curves.map((one) => one.x[0]));
  const end = Math.min(...curves.map((one) => one.x[one.x.length - 1]));
  const grid = curves.reduce((a, b) => (a.x.length >= b.x.length ? a : b)).x.filter((x) => x >= start && x <= end);
  const rows = grid.map((x) => curves.map((one) => interpolate(one.x, one.y, x)));
  return grid.length ? { x: grid, y: rows.map((row) => row.reduce((a, b) => a + b) / row.length), rows } : null;
}

// The mean and band of the runs of a setting. Runs of one unit (a repeated seed, the forks of one run) count as one.
function band(numbers) {
  const units = new Map();
  for (const number of numbers.filter(counts)) {
    const found = curve(number);
    if (found && found.x.every(Number.isFinite)) units.set(runs[number].unit, [...(units.get(runs[number].unit) || []), found]);
  }
  const curves = [...units.values()].map((own) => (own.length > 1 ? meanOf(own) : own[0])).filter(Boolean);
  const found = curves.length ? meanOf(curves) : null;
  if (!found) return null;
  const { x, y: mean, rows } = found;
  const half = (row, middle) => {
    const variance = row.reduce((sum, y) => sum + (y - middle) ** 2, 0) / (row.length - 1);
    return data.t[row.length - 1] * Math.sqrt(variance / row.length);
  };
  const edges = rows.map((row, index) =>
    row.length < 2 ? [mean[index], mean[index]]
      : state.seeds === "range" ? [Math.min(...row), Math.max(...row)]
        : [mean[index] - half(row, mean[index]), mean[index] + half(row, mean[index])]);
  return { x, y: mean, low: edges.map((edge) => edge[0]), high: edges.map((edge) => edge[1]), size: curves.length };
}

function textOf(number) {
  const run = runs[number];
  return once(`${number} text`, () => [run.label, run.status, run.path,
    ...data.keys.flatMap(({ key, name }, index) => [`${key}=${run.values[index]}`, `${name}=${run.values[index]}`])]
    .join(" ").toLowerCase());
}

const matches = (number) => state.words.every((word) => textOf(number).includes(word));
const visible = () => [...runs.keys()].filter((number) =>
  state.checked.has(number) && matches(number) && (!state.brushed || state.brushed.has(number)));

// The palette of Okabe and Ito, which colour-blind people can distinguish, made darker or lighter for the background.
const PALETTE = {
  light: ["#0072b2", "#d55e00", "#009e73", "#b0508c", "#c78500", "#3a9bd6", "#555555"],
  dark: ["#4aa8e0", "#ff8a3d", "#2fcfa0", "#e39ac6", "#f0b429", "#8fd0f5", "#c8c8c8"],
};
const DASHES = ["solid", "dash", "dot"];
// Viridis, from the lowest value to the highest, without the end that would be invisible on the background.
const SCALE = {
  light: ["#440154", "#414487", "#2a788e", "#22a884", "#a5c92c"],
  dark: ["#6d63c9", "#3f8fb5", "#2ab48a", "#86d549", "#fde725"],
};
const darkScheme = matchMedia("(prefers-color-scheme: dark)");
const theme = () => (darkScheme.matches && document.documentElement.dataset.theme !== "light" ? "dark" : "light");

function mixed(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1), first = Math.min(Math.floor(place), stops.length - 2);
  const channel = (color, index) => parseInt(color.slice(1 + 2 * index, 3 + 2 * index), 16);
  const parts = [0, 1, 2].map((index) => Math.round(channel(stops[first], index) +
    (place - first) * (channel(stops[first + 1], index) - channel(stops[first], index))));
  return `rgb(${parts.join(",")})`;
}

const MAX_LEGEND = 12;
const isNumber = (value) => typeof value === "number";
const needsLogScale = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 20;

// Returns the colour and dash of each run, and the entries of the legend.
function coloring() {
  const palette = PALETTE[theme()], stops = SCALE[theme()];
  const look = (index) => ({ color: palette[index % palette.length], dash: DASHES[Math.floor(index / palette.length) % DASHES.length] });
  if (state.color === "family") {  // a trunk and its branches have one colour; the branches are dashed
    const others = runs.map((run) => run.family).map((family, index, all) => family ?? data.families.length + all.slice(0, index).filter((one) => one === null).length);
    const of = (index, branch) => ({ color: palette[index % palette.length], dash: branch ? "dash" : "solid" });
    return {
      of: others.map((index, number) => of(index, runs[number].branch)),
      legend: data.families.flatMap((name, index) => [{ value: name, ...of(index, false) }, { value: `${name}, decayed`, ...of(index, true) }]),
    };
  }
  const kinds = {
    run: () => runs.map((_, number) => number),
    group: () => runs.map((run) => run.group),
  };
  const kind = state.seeds !== "off" && state.color === "run" ? "group" : state.color;  // a mean is not of one run
  if (kinds[kind]) {
    const numbers = kinds[kind](), firsts = new Map();
    for (const [number, group] of numbers.entries()) if (!firsts.has(group)) firsts.set(group, number);
    const named = kind === "group" && firsts.size <= MAX_LEGEND;
    return { of: numbers.map(look), legend: named ? [...firsts].map(([group, number]) => ({ value: runs[number].setting, ...look(group) })) : [] };
  }
  const column = data.keys.findIndex(({ key }) => key === state.color);
  const values = runs.map((run) => run.values[column]);
  const levels = [...new Set(values)].sort(compareValues);
  if (!levels.every(isNumber)) {
    return { of: values.map((value) => look(levels.indexOf(value))), legend: levels.map((value, index) => ({ value, ...look(index) })) };
  }
  const place = needsLogScale(levels) ? Math.log : (value) => value;
  const low = place(levels[0]), span = place(levels[levels.length - 1]) - low || 1;
  const of = (value) => ({ color: mixed(stops, (place(value) - low) / span), dash: "solid" });
  const shown = levels.length <= MAX_LEGEND ? levels : [0, 0.25, 0.5, 0.75, 1].map((share) => levels[Math.round(share * (levels.length - 1))]);
  return { of: values.map(of), legend: shown.map((value) => ({ value, ...of(value) })) };
}

function compareValues(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function valueText(value) {
  if (value === null || value === undefined) return "–";
  if (!isNumber(value)) return String(value);
  return Number.isInteger(value) && Math.abs(value) < 1e5 ? String(value) : String(Number(value.toPrecision(5)));
}

// Losses have the same number of decimals, so that they can be compared at a glance.
const fixed = (value) => (value === null ? "–" : Math.abs(value) < 1e4 ? value.toFixed(4) : value.toPrecision(4));

function si(value) {
  if (value === null) return "–";
  const unit = [["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]].find(([, size]) => Math.abs(value) >= size);
  return unit ? `${Number((value / unit[1]).toPrecision(3))}${unit[0]}` : String(Number(value.toPrecision(3)));
}

function duration(seconds) {
  if (seconds === null) return "–";
  const units = [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]];
  const [size, name, small, smallName] = units.find(([size]) => seconds >= size) || [1, "s", 0, ""];
  const rest = small ? Math.floor((seconds % size) / small) : 0;
  return small ? `${Math.floor(seconds / size)}${name} ${rest}${smallName}` : `${Number(seconds.toPrecision(3))}s`;
}

// Sorts from best to worst; runs without an outcome are last.
const byOutcome = (a, b) => (runs[a].outcome === null) - (runs[b].outcome === null) || data.sign * (runs[a].outcome - runs[b].outcome);

// Plotly interprets some HTML in its texts, so the texts of runs are escaped.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// Makes an element. Texts are set as text, never as HTML.
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value; else made.setAttribute(key, value);
  }
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}
