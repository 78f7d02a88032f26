"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const duels = new Map(data.duels.map(d => [d.row + " " + d.control + " " + d.column, d]));
const own = [["effective scale", r => r.effective], ["cosine", r => r.cosine === null ? null : [r.cosine]],
  ["evaluations", r => r.evaluations === null ? null : [r.evaluations]], ["seconds", r => r.seconds === null ? null : [r.seconds]]];
const chosen = name => document.getElementById(name);
let sorted = { key: data.columns[0].name, down: true }, open = new Set();

function number(x) { return x === null || x === undefined ? "" : Math.abs(x) >= 100 ? x.toFixed(0) : Number(x.toPrecision(3)).toString(); }

const fixed = name => own.find(([title]) => title === name);

// what a cell of the table holds: [value, low, high], and a duel where a control is chosen
function entry(row, name) {
  if (fixed(name)) return { at: fixed(name)[1](row) };
  if (!chosen("view").value) return { at: row.values[name] };
  const duel = duels.get(row.name + " " + chosen("view").value + " " + name);
  return { at: duel ? duel.difference : null, duel };
}

function visible(row) {
  if (row.role === "curve") return chosen("curve").checked && !chosen("view").value;
  if (row.role !== "defaults" && !(row.role === "knob" && chosen("knobs").checked)) return false;
  if (!row.name.includes(chosen("filter").value.trim())) return false;
  const view = chosen("view").value, met = data.duels.filter(d => d.row === row.name && (!view || d.control === view));
  if (chosen("agreed") && chosen("agreed").checked) return met.some(d => (d.together || "").endsWith("on both"));
  return !chosen("decided").checked || met.some(d => ["better", "worse"].includes(d.verdict));
}

function element(tag, text, attributes) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  Object.assign(made, attributes);
  return made;
}

function bar([value, low, high], [from, to]) {
  const place = x => 100 * (x - from) / (to - from || 1) + "%", box = element("div", undefined, { className: "scale" });
  if (from < 0 && to > 0) { const zero = element("u"); zero.style.left = place(0); box.append(zero); }
  if (low !== null && low !== undefined) {
    const range = element("i");
    range.style.left = place(low); range.style.right = 100 - parseFloat(place(high)) + "%";
    box.append(range);
  }
  const tick = element("b"); tick.style.left = place(value); box.append(tick);
  return box;
}

function cell(row, name, range) {
  const { at, duel } = entry(row, name), made = element("td");
  if (!at) { made.append(element("span", "\u2013", { title: duel ? duel.note : "not measured" })); return made; }
  const sign = duel && at[0] > 0 ? "+" : "";
  made.append(element("span", sign + number(at[0]), { className: duel && duel.verdict ? duel.verdict : "" }));
  if (at[1] !== null && at[1] !== undefined) made.append(bar(at, range));
  if (duel && duel.win) made.append(element("small", "wins " + Math.round(100 * duel.win[0]) + " %"));
  const other = duel ? duel.second && duel.second.difference : !fixed(name) && row.second[name];
  if (other) {
    const verdict = duel && duel.second.verdict, text = "second " + (duel && other[0] > 0 ? "+" : "") + number(other[0]);
    made.append(element("small", text, { className: verdict || "", title: duel && duel.together ? duel.together : "" }));
  }
  const interval = at[1] === null || at[1] === undefined ? "" : number(at[1]) + " to " + number(at[2]) + ", n = " + at[3];
  const p = duel && duel.holm !== null ? "; p = " + number(duel.holm) + " (Holm)" : "";
  const won = duel && duel.win ? "; wins " + [0, 1, 2].map(i => number(duel.win[i])).join(", ") : "";
  made.title = interval + p + won + (duel && duel.note ? "; " + duel.note : "");
  return made;
}

function detail(row, width) {
  const line = element("tr", undefined, { className: "detail" }), box = element("div", undefined, { className: "strips" });
  for (const name of [row.name, ...(data.beside[row.name] || [])]) {
    const strip = data.pictures[name];
    if (!strip) continue;
    const figure = element("figure");
    figure.append(element("figcaption", name), element("img", undefined, { src: strip.uri, alt: name + ": " + strip.told.join("; ") }));
    box.append(figure);
  }
  const list = element("ol");
  if (data.pictures[row.name]) data.pictures[row.name].told.forEach(text => list.append(element("li", text)));
  box.append(list, element("pre", row.command));
  Object.entries(row.unmeasured || {}).forEach(([name, why]) => box.append(element("p", name + " was not measured: " + why)));
  const held = element("td", undefined, { colSpan: width });
  held.append(box); line.append(held);
  return line;
}

// whether the largest value comes first
function best(name) {
  const column = data.columns.find(c => c.name === name);
  return name !== "method" && !(column && column.better === "lower");
}

function draw() {
  const names = [...data.columns.map(c => c.name), ...own.map(([name]) => name)], rows = data.rows.filter(visible);
  const key = row => { const at = entry(row, sorted.key).at; return sorted.key === "method" ? row.name : at ? at[0] : null; };
  rows.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (sorted.down ? -1 : 1);
  });
  const table = element("table", undefined, { id: "ranking" }), head = element("tr"), body = element("tbody");
  for (const name of ["method", ...names]) {
    const th = element("th", undefined, { scope: "col", className: name === "method" ? "name" : "" });
    const column = data.columns.find(c => c.name === name);
    const way = column && column.better ? (column.better === "lower" ? "less is better" : "more is better") : "";
    th.append(element("button", name, { title: way, onclick: () => { sorted = { key: name, down: sorted.key === name ? !sorted.down : best(name) }; draw(); } }));
    if (sorted.key === name) th.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
    head.append(th);
  }
  const ranges = Object.fromEntries(names.map(name => {
    const known = rows.map(row => entry(row, name).at).filter(Boolean).flatMap(at => at.slice(0, 3)).filter(x => x !== null && x !== undefined);
    return [name, [Math.min(...known), Math.max(...known)]];
  }));
  for (const row of rows) {
    const line = element("tr", undefined, { className: row.role }), th = element("th", undefined, { scope: "row", className: "name" });
    const title = row.role === "curve" ? "cfg, scale " + row.nominal : row.role === "defaults" ? row.method : row.method + ", " + row.setting;
    th.append(element("button", title, { onclick: () => { open.has(row.name) ? open.delete(row.name) : open.add(row.name); draw(); } }));
    line.append(th, ...names.map(name => cell(row, name, ranges[name])));
    body.append(line);
    if (open.has(row.name)) body.append(detail(row, names.length + 1));
  }
  const header = element("thead"); header.append(head); table.append(header, body);
  document.getElementById("ranking").replaceWith(table);
}

for (const name of ["view", "filter", "knobs", "curve", "decided", "agreed"]) if (chosen(name)) chosen(name).addEventListener("input", draw);
draw();
