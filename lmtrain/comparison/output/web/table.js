// The table of runs: which are drawn, the settings that differ, and the results.
const FORMATS = { value: fixed, count: si, time: duration };
const COLUMNS = [  // heading, a run's value, its format, the full name as a tooltip
  ["run", (number) => runs[number].label, valueText, ""], ["status", (number) => runs[number].status, valueText, ""],
  ...data.keys.map(({ key, name }, index) => [name, (number) => runs[number].values[index], valueText, key]),
  ...data.facts.filter(({ values }) => values.some((value) => value !== null))
    .map(({ name, kind, values }) => [name, (number) => values[number], FORMATS[kind], kind === "value" ? `${name} ${data.metric}` : ""]),
];
const isNumeric = COLUMNS.map(([, of]) => [...runs.keys()].some((number) => isNumber(of(number))));
const rows = new Map();

function buildTable() {
  const everything = element("input", { type: "checkbox", ariaLabel: "draw all runs in the table", id: "everything" });
  everything.addEventListener("change", () => check([...runs.keys()].filter(matches), everything.checked));
  const heads = COLUMNS.map(([name, , , key], index) => {
    const button = element("button", { type: "button", title: key || name }, name);
    button.addEventListener("click", () => {
      state.descending = state.sort === index && !state.descending;
      state.sort = index;
      sortRows();
    });
    return element("th", { scope: "col", className: isNumeric[index] ? "number" : "" }, button);
  });
  const body = element("tbody");
  for (const [number, run] of runs.entries()) body.append(buildRow(number, run));
  byId("runs").replaceChildren(element("thead", {}, element("tr", {}, element("th", { scope: "col" }, everything), ...heads)), body);
  state.sort = data.sorted === null ? null : COLUMNS.findIndex(([name]) => name === data.sorted);
  state.descending = data.sign < 0;
  sortRows();
}

function buildRow(number, run) {
  const box = element("input", { type: "checkbox", checked: true, ariaLabel: `draw ${run.label}` });
  box.addEventListener("change", () => check([number], box.checked));
  const name = element("button", { type: "button", className: "name" }, run.label);
  name.addEventListener("click", () => showConfig(number));
  const cells = COLUMNS.slice(1).map(([, of, format], index) => element("td", { className: isNumeric[index + 1] ? "number" : "" }, format(of(number))));
  const sample = element("span", { className: "dot" });
  const row = element("tr", { className: run.below ? "below" : "" }, element("td", {}, box), element("th", { scope: "row" }, sample, name), ...cells);
  row.addEventListener("mouseenter", () => highlight(number));
  row.addEventListener("mouseleave", () => highlight(null));
  row.addEventListener("focusin", () => highlight(number));
  row.addEventListener("focusout", () => highlight(null));
  rows.set(number, { row, box, sample });
  return row;
}

function sortRows() {
  const [, of] = COLUMNS[Math.max(0, state.sort ?? 0)];
  const sign = state.descending ? -1 : 1;
  byId("runs").classList.toggle("families", state.sort === null);  // each branch below its trunk, until a heading is clicked
  const order = state.sort === null ? [...runs.keys()] : [...runs.keys()].sort((a, b) => {
    const [left, right] = [of(a), of(b)];
    // Runs without a value are last in both directions.
    return left === null || right === null ? (left === null) - (right === null) : sign * compareValues(left, right);
  });
  byId("runs").tBodies[0].append(...order.map((number) => rows.get(number).row));
  for (const [index, head] of [...byId("runs").tHead.rows[0].cells].slice(1).entries()) {
    head.ariaSort = index === state.sort ? (state.descending ? "descending" : "ascending") : "none";
  }
}

function check(numbers, checked) {
  for (const number of numbers) {
    if (checked) state.checked.add(number); else state.checked.delete(number);
  }
  refresh();
}

function checkOnly(numbers) {
  state.checked = new Set(numbers);
  refresh();
}

const bestRuns = (count) => [...runs.keys()].filter((number) => matches(number) && runs[number].outcome !== null)
  .sort(byOutcome).slice(0, count);

function drawTable() {
  const looks = coloring().of, shown = visible();
  for (const [number, { row, box, sample }] of rows) {
    row.hidden = !matches(number) || (state.brushed !== null && !state.brushed.has(number));
    box.checked = state.checked.has(number);
    sample.style.backgroundColor = box.checked ? looks[number].color : "transparent";
    sample.style.borderColor = looks[number].color;
  }
  const matching = [...runs.keys()].filter(matches), checked = matching.filter((number) => state.checked.has(number));
  byId("everything").checked = checked.length === matching.length;
  byId("everything").indeterminate = checked.length > 0 && checked.length < matching.length;
  byId("shown").textContent = `${shown.length} of ${runs.length} shown`;
}

function keyRows(table, pairs, strong) {
  table.replaceChildren(element("tbody", {}, ...pairs.map(([key, value]) =>
    element("tr", { className: strong.has(key) ? "differs" : "" }, element("th", { scope: "row" }, key), element("td", {}, value)))));
}

function showConfig(number) {
  const run = runs[number];
  byId("config-title").textContent = run.label;
  byId("config-path").textContent = [run.path, run.status, run.parent, run.parameters && `${si(run.parameters)} parameters`]
    .filter(Boolean).join(" · ");
  const config = { ...data.common, ...run.config };
  const order = Object.keys(config).sort((a, b) => (b in run.config) - (a in run.config));
  keyRows(byId("config-table"), order.map((key) => [key, config[key]]), new Set(Object.keys(run.config)));
  byId("config").showModal();
}
