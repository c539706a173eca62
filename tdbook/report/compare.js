// Fills the page that compares runs (compare.html.j2): filters, sorts, draws and diffs the rows that
// run_pages.records gave. Names and values come from records: they are only ever set as text.

const {folders, plan, labels} = JSON.parse(document.querySelector("#data").textContent);
const COLOURS = ["#1b5e8c", "#c8371b", "#1e6b3a", "#7a2f6b", "#8a6d00", "#0f7d86", "#1f2023", "#9c5a1e"];
const RESULTS = {  // what is measured → [its name on the page, digits, unit]
  loss: ["loss", 3], kl: ["KL to teacher", 3], agreement: ["agreement", 1, "%"],
  acceptance: ["acceptance", 1, "%"], calibration_error: ["calibration error", 1, "%"],
  bits_per_byte: ["bits per byte", 3], perplexity: ["perplexity", 1], loss_fixed: ["loss, fixed windows", 3],
  parameters: ["weights", 0], seconds: ["seconds of the run", 0], tokens_per_second: ["tokens per second", 0],
};
const one = selector => document.querySelector(selector), field = name => one(`[name=${name}]`);
const ticked = new Map();  // row → how its curve is drawn
let shown = [], sorted = {column: "loss", sign: 1}, limit = 25, later;

function make(tag, attributes = {}, ...inside) {
  const drawn = ["svg", "path", "rect", "text"].includes(tag);
  const made = document.createElementNS(`http://www.w3.org/${drawn ? "2000/svg" : "1999/xhtml"}`, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}

const breakable = text => make("span", {}, ...text.match(/[^_/=]*[_/=]?/g).flatMap(part => [part, make("wbr")]));
const label = name => RESULTS[name]?.[0] ?? name;
const formats = [0, 1, 2, 3, 4, 5, 6].map(digits => new Intl.NumberFormat("en",  // slow to make
  {minimumFractionDigits: digits, maximumFractionDigits: digits}));
const number = (value, digits = 0) => formats[Math.min(digits, 6)].format(value)
  .replace(/^-/, minus => Math.abs(value) < 0.5 / 10 ** digits ? "" : "−");

function written(name, value) {
  const [known, digits, unit = ""] = RESULTS[name] ?? [];
  if (known && !isNaN(value)) return number(unit ? 100 * value : value, digits) + unit;
  return value === "" ? "none" : value >= 10000 ? number(value) : String(value ?? "–");
}

const value = (row, name) => name === "name" ? row.title : row.results[name] ?? row.parameters[name];
const several = Object.keys(folders).length > 1;
const rows = Object.entries(folders).flatMap(([folder, records]) => records.flatMap(record => {
  const {run, notebook, parameters, models, seconds, tokens_per_second, curves, place: [sweep, point]} = record;
  const names = Object.keys(models), group = sweep ? `sweep ${sweep}` : notebook;
  const alone = names.length === 1 && run.endsWith(`-${point}`);  // a point is called by what varies
  return (names.length ? names : [""]).map(model => {
    const name = alone ? point : `${point ? `${point} ` : ""}${model || run}`, curve = curves[model] ?? [];
    const title = (several ? `${folder}: ` : "") + (sweep ? `${sweep}/` : "") + name;
    const measured = Object.entries({...models[model], seconds, tokens_per_second});
    const results = Object.fromEntries(measured.filter(([, value]) => typeof value === "number"));
    const pairs = Object.entries(parameters).map(pair => pair.join("="));
    const words = [title, run, group, ...pairs].join(" ").toLowerCase();
    return {folder, sweep, group, notebook, parameters, model, name, title, results, words, curve};
  });
}));
const first = {};  // the parameters of each notebook's first row
for (const row of rows) first[row.notebook] ??= row.parameters;
const having = (name, some) => some.filter(row => name in row.parameters);
const differs = (name, some) => new Set(having(name, some).map(row => row.parameters[name])).size > 1;
const varying = [...new Set(rows.flatMap(row => Object.keys(row.parameters)))]
  .filter(name => (name === "seed" || ![...labels, "teacher"].includes(name)) && differs(name, rows));

// A word of the filter as a test of a row; null where it names what no row has.
function test(word) {
  const [, name, sign, wanted] = /^([^<>=]+)(<=|>=|=|<|>)(.*)$/.exec(word) ?? [];
  if (!name) return row => row.words.includes(word);
  if (!rows.some(row => value(row, name) !== undefined)) return null;
  return row => {
    const own = value(row, name), numeric = typeof own === "number";
    const a = numeric ? own : String(own).toLowerCase(), b = numeric ? parseFloat(wanted) : wanted;
    return own !== undefined && {"=": a === b, "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b}[sign];
  };
}

// Parameters that differ between some rows; first those with the most rows unlike their notebook's first.
function differing(some) {
  const unlike = name => some.filter(row => row.parameters[name] !== first[row.notebook][name]).length;
  return varying.filter(name => differs(name, some)).map(name => [unlike(name), name])
    .sort(([a], [b]) => b - a).map(([, name]) => name);
}

function order(a, b) {
  const [x, y] = [a, b].map(row => value(row, sorted.column));
  if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
  return sorted.sign * (typeof x === "number" && typeof y === "number" ? x - y
    : String(x).localeCompare(String(y), "en", {numeric: true}));
}

function show() {
  const words = field("filter").value.toLowerCase().split(/\s+/).filter(Boolean), tests = words.map(test);
  const wanted = row => ["all", row.group, row.folder].includes(field("group").value)
    && tests.every(fits => fits?.(row));
  shown = rows.filter(wanted).sort(order);
  one("#count").textContent = !tests.includes(null) ? `${number(shown.length)} of ${number(rows.length)} rows`
    : `${words[tests.indexOf(null)]}: no row has a parameter or result of that name`;
  const own = differing(shown), mixed = new Set(shown.map(row => row.group)).size > 1;
  const measured = Object.keys(RESULTS).filter(name => shown.some(row => name in row.results));
  const more = field("all").checked ? [...own, ...measured.slice(1)] : own.slice(0, innerWidth < 640 ? 2 : 3);
  const columns = [...measured.slice(0, 1), ...more];
  one("#runs thead").replaceChildren(make("tr", {}, ...["name", ...columns].map(name => {
    const by = name === sorted.column && (sorted.sign > 0 ? ["ascending", " ▴"] : ["descending", " ▾"]);
    const button = make("button", {"data-column": name, title: name}, breakable(label(name)), ...by ? [by[1]] : []);
    return make("th", {scope: "col", class: name === "name" ? "" : "num", ...by && {"aria-sort": by[0]}}, button);
  })));
  one("#runs tbody").replaceChildren(...shown.slice(0, limit).map(row => {
    const box = make("input", {type: "checkbox"}), title = breakable(mixed || several ? row.title : row.name);
    Object.assign(box, {checked: ticked.has(row), onchange: () => { tick(row, box.checked); draw(); }});
    return make("tr", {}, make("th", {scope: "row"}, make("label", {}, box, title)),
      ...columns.map(name => make("td", {class: "num"}, breakable(written(name, value(row, name))))));
  }));
  one("#more").hidden = shown.length <= limit;
  one("#more").textContent = `show all ${number(shown.length)}`;
  clearTimeout(later);
  later = setTimeout(draw);  // the table is not kept waiting
}

// A row gets the first colour that is free; of more rows than colours, the others are dashed.
function tick(row, on) {
  ticked.delete(row);
  const taken = [...ticked.values()].map(({at}) => at), at = [...rows.keys()].find(i => !taken.includes(i));
  const style = `stroke: ${COLOURS[at % COLOURS.length]}; stroke-dasharray: ${at < COLOURS.length ? 0 : "7 3"}`;
  if (on) ticked.set(row, {at, style});
}

const draw = () => [curves, diff, responses].forEach(part => part());

// A drawing with axes: x and y are {low, high, ticks, say, name, at}, `at` being the place of a value
// from 0 to 1; `parts` gets the places of values as functions and returns elements.
function chart(figure, x, y, parts) {
  const width = figure.clientWidth, height = Math.round(Math.min(300, 100 + width * 0.3));
  const [left, right, top, bottom] = [58, width - 16, 28, height - 44];
  const across = value => left + x.at(value) * (right - left);
  const up = value => bottom - y.at(value) * (bottom - top);
  const text = (x, y, anchor, words) => make("text", {x, y, "text-anchor": anchor}, words);
  let end = -Infinity;  // of the label before, so that none is written over it
  const below = x.ticks.flatMap(at => {
    const half = x.say(at).length * 3.6 + 4, middle = Math.min(Math.max(across(at), half), width - half + 4);
    if (middle - half < end) return [];
    end = middle + half;
    return [text(middle, bottom + 18, "middle", x.say(at))];
  });
  const about = {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${y.name}, by ${x.name}`};
  figure.replaceChildren(make("svg", about,
    make("path", {class: "grid", d: y.ticks.map(at => `M${left} ${up(at)}H${right}`).join("")}),
    ...parts(across, up, top, bottom), text(0, 12, "start", y.name), ...below,
    ...y.ticks.map(at => text(left - 6, up(at) + 4, "end", y.say(at))),
    text((left + right) / 2, height - 6, "middle", x.name)));
}

// An axis of numbers: about five ticks, 1, 2 or 5 times a power of ten apart, told apart by decimals.
function axis(values, name) {
  const low = Math.min(...values), span = Math.max(...values) - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / 4));
  const step = [1, 2, 5, 10].find(times => times * power > span / 5) * power, first = Math.ceil(low / step);
  const ticks = [...Array(9).keys()].map(i => (first + i) * step).filter(at => at <= low + span);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return {name, ticks, at: value => (value - low) / span, say: value => number(value, digits)};
}

// The axis of a parameter: numbers far apart by their logarithms, what is no number one by one.
function parameterAxis(values, name) {
  const known = [...new Set(values)].sort((a, b) => a < b ? -1 : 1), low = known[0], high = known.at(-1);
  const numeric = known.every(value => typeof value === "number"), far = numeric && low > 0 && high / low >= 8;
  const part = value => far ? Math.log(value / low) / Math.log(high / low)
    : numeric ? (value - low) / (high - low) : known.indexOf(value) / (known.length - 1);
  const at = value => 0.05 + 0.9 * part(value), say = value => written(name, value);
  return {low, high, name, numeric, ticks: known, at, say};
}

const line = points => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function curves() {
  const some = [...ticked].filter(([row]) => row.curve.length);
  const parts = some.map(([{curve}]) => curve.filter(([tokens], i) => i === curve.length - 1
    || tokens >= (field("whole").checked ? 0 : curve.at(-1)[0] / 10)).map(([x, y]) => [x / 1e6, y]));
  const x = axis([0, ...parts.flat().map(([tokens]) => tokens)], "million tokens");
  const y = axis(parts.flat().map(([, loss]) => loss), "validation loss"), figure = one("#curves figure");
  figure.replaceChildren();
  if (some.length) chart(figure, x, y, (across, up) => parts.map((part, i) => make("path", {class: "curve",
    style: some[i][1].style, d: line(part.map(([tokens, loss]) => [across(tokens), up(loss)]))})));
  one("#legend").replaceChildren(...some.map(([row, {style}]) => {
    const [tokens, last] = row.curve.at(-1), least = Math.min(...row.curve.map(([, loss]) => loss));
    const words = `${row.title}: ${number(last, 3)} after ${number(tokens / 1e6, 2)} M tokens`;
    const swatch = make("svg", {width: 32, height: 10, "aria-hidden": true}, make("path", {style, d: "M0 5H32"}));
    return make("li", {}, swatch, breakable(words + (least < last ? `, lowest ${number(least, 3)}` : "")));
  }));
}

function diff() {
  const pair = [];
  for (const name of ["a", "b"]) {
    const free = [...ticked.keys()].filter(row => row !== pair[0]), select = field(name);
    pair.push(free.find(row => row.title === select.value) ?? free[0]);
    select.replaceChildren(...free.map(row => make("option", {}, row.title)));
    select.value = pair.at(-1)?.title;
  }
  one("#diff").replaceChildren();
  if (!pair[1]) return one("#alike").textContent = "Tick two rows to see them here.";
  const line = (name, cells) => make("tr", {}, make("th", {scope: "row"}, breakable(label(name))),
    ...cells.map(cell => make("td", {class: "num"}, breakable(cell))));
  const results = Object.keys(RESULTS).filter(name => pair.some(row => name in row.results)).map(name => {
    const [a, b] = pair.map(row => row.results[name]), change = isNaN(b - a) ? "–" : written(name, b - a);
    return line(name, [written(name, a), written(name, b), (/^[\d,.]*[1-9]/.test(change) ? "+" : "") + change]);
  });
  const all = new Set(pair.flatMap(row => Object.keys(row.parameters)));
  const names = [...all].filter(name => !["run", "out"].includes(name));  // the titles say them
  const apart = names.filter(name => pair[0].parameters[name] !== pair[1].parameters[name]);
  const lines = apart.map(name => line(name, [...pair.map(row => written(name, row.parameters[name])), ""]));
  const heads = [pair[0].title, pair[1].title, "B − A"].map(name => make("th", {class: "num"}, breakable(name)));
  one("#diff").append(make("thead", {}, make("tr", {}, make("td"), ...heads)));
  one("#diff").append(make("tbody", {}, ...results, ...lines));
  one("#alike").textContent = `${names.length - apart.length} other parameters are the same.`;
}

// Of every sweep among the rows shown, a chart of each parameter that differs in it.
function responses() {
  const swept = shown.filter(row => row.sweep && "loss" in row.results), box = one("#response");
  box.replaceChildren();
  one("#sweeps").hidden = false;  // what is hidden has no width
  for (const name of new Set(swept.map(row => row.group))) {
    const points = swept.filter(row => row.group === name), varied = differing(points);
    const drawn = varied.filter(name => name !== "seed"), figures = drawn.map(() => make("figure", {class: "chart"}));
    box.append(...drawn.length ? [make("h3", {}, name), ...figures] : []);
    drawn.forEach((parameter, i) => response(figures[i], parameter, points, varied));
  }
  one("#sweeps").hidden = !box.firstChild;
}

function response(figure, parameter, all, varied) {
  const points = having(parameter, all), alike = {};
  const x = parameterAxis(points.map(row => row.parameters[parameter]), parameter);
  const best = points.reduce((a, b) => a.results.loss <= b.results.loss ? a : b);
  const y = axis(points.map(row => row.results.loss), `loss, lowest at ${x.say(best.parameters[parameter])}`);
  for (const row of points) {
    const others = varied.map(name => name === parameter ? "" : row.parameters[name]);
    (alike[[row.folder, row.notebook, row.model, ...others]] ??= []).push(row);
  }
  const [from, to] = plan[`${points[0].notebook}.${parameter}`] ?? plan[parameter] ?? [];
  chart(figure, x, y, (across, up, top, bottom) => {
    const place = row => [across(row.parameters[parameter]), up(row.results.loss)];
    const lines = Object.values(alike).map(some => line(some.map(place).sort((a, b) => a[0] - b[0])));
    const left = across(Math.max(from, x.low)) - 6, width = across(Math.min(to, x.high)) + 6 - left;
    const ground = {class: "plan", x: left, width, y: top, height: bottom - top};
    return [...x.numeric && width > 0 ? [make("rect", ground)] : [], make("path", {class: "lines", d: lines.join("")}),
      make("path", {class: "dots", d: points.map(row => `${line([place(row)])}h0`).join("")})];
  });
}

const groups = new Set(["all", ...rows.map(row => row.group).sort(), ...several ? Object.keys(folders) : []]);
field("group").append(...[...groups].map(name => make("option", {}, name)));
const asked = decodeURIComponent(location.hash.slice(1));
if (groups.has(asked)) field("group").value = asked;
for (const name of ["group", "filter"]) field(name).oninput = () => { limit = 25; show(); };
field("all").oninput = show;
for (const name of ["whole", "a", "b"]) field(name).oninput = draw;
one("#runs thead").onclick = ({target}) => {
  const column = target.closest("button")?.dataset.column ?? sorted.column;
  sorted = {column, sign: column === sorted.column ? -sorted.sign : 1};
  show();
  one(`[data-column="${column}"]`).focus();
};
one("#more").onclick = () => { limit = Infinity; show(); };
one("#none").onclick = () => { ticked.clear(); show(); };
show();
const students = shown.filter(row => row.curve.length > 1 && row.results.kl);  // 0 is the teacher itself
for (const row of students.slice(0, 3)) tick(row, true);
show();
