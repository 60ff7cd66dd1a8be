"use strict";
// Draws both maps and links them with the findings. What stands in the data came from an image: it reaches the page as
// text nodes only.
(() => {
const root = document.documentElement;
window.addEventListener("error", event => { root.dataset.error = String(event.message); });
const data = JSON.parse(document.getElementById("data").textContent);

// ---- numbers and words -------------------------------------------------------------------------------------------------
const big36 = text => { let value = 0n; for (const digit of text) value = value * 36n + BigInt(parseInt(digit, 36)); return value; };
const int36 = text => parseInt(text, 36);
const hex = value => "0x" + value.toString(16);
const grouped = value => value.toString().replace(/\B(?=(\d{3})+$)/g, "\u00a0");
const units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
function human(value) {
  let unit = 0;
  while (unit < 6 && value >> BigInt(10 * (unit + 1)) > 0n) unit++;
  if (value === 1n) return "1 byte";
  const size = 1n << BigInt(10 * unit);
  if (value % size === 0n) return value / size + " " + units[unit];
  const hundredths = value * 100n / size, part = hundredths % 100n;
  return hundredths / 100n + (part ? "." + String(part).padStart(2, "0") : "") + " " + units[unit];
}
function percent(part, whole) {
  if (whole === 0n) return "–";
  const hundredths = (part * 10000n + whole / 2n) / whole;
  if (hundredths === 0n && part > 0n) return "<0.01 %";
  if (hundredths === 10000n && part < whole) return ">99.99 %";
  return (Number(hundredths) / 100).toFixed(2) + " %";
}
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// ---- the scheme --------------------------------------------------------------------------------------------------------
const asked = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.scheme || (asked.matches ? "dark" : "light")) === "dark";
const variable = name => getComputedStyle(root).getPropertyValue(name).trim();
const rgb = colour => [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16));
const mixed = (ground, full, share) => "rgb(" + ground.map((part, at) => Math.round(part + (full[at] - part) * share)).join(",") + ")";
const isBright = colour => { const [r, g, b] = colour.match(/\d+/g).map(Number); return r * 0.299 + g * 0.587 + b * 0.114 > 140; };

// ---- the data of one map -----------------------------------------------------------------------------------------------
function spread(text, each) {
  let at = 0;
  if (text === "") return;
  for (const token of text.split(" ")) {
    const star = token.indexOf("*");
    const count = star < 0 ? 1 : int36(token.slice(0, star)), value = each(token.slice(star + 1));
    for (let i = 0; i < count; i++) at = value(at);
  }
}
function runsOf(text) {
  return (text || "").split(" ").filter(Boolean).map(run => {
    const [first, more] = run.split("-").map(int36);
    return [first, first + (more || 0)];
  });
}
function decode(source) {
  const map = { title: source.title, len: BigInt(source.len), cellLen: BigInt(source.cellLen), width: source.width, height: source.height };
  const unit = BigInt(source.unit);
  map.kinds = source.kinds.map(([letter, name, flags, light, dark]) =>
    ({ letter, name, used: !!(flags & 1), metadata: !!(flags & 2), alarm: !!(flags & 4), light: rgb(light), dark: rgb(dark) }));
  map.cells = [];
  spread(source.cells, token => {
    const parts = token === "-" ? [] : token.split(",").map(word => {
      const [whole, rest] = word.slice(1).split("+");
      const bytes = word.length === 1 ? map.cellLen : big36(whole) * unit + (rest ? big36(rest) : 0n);
      return { kind: int36(word[0]), bytes };
    });
    return at => { map.cells.push(parts); return at + 1; };
  });
  map.marks = new Uint8Array(map.cells.length);
  spread(source.marks, token => at => { map.marks[at] = +token; return at + 1; });
  // The curve: a place for each cell, a cell for each place.
  map.places = new Int32Array(map.cells.length);
  map.index = new Int32Array(map.width * map.height).fill(-1);
  let x = 0, y = 0, at = 0;
  const put = () => { map.places[at] = y * map.width + x; map.index[y * map.width + x] = at++; };
  if (map.cells.length) put();
  for (const [, way, count] of source.moves.matchAll(/([rlud])(\d*)/g)) {
    for (let i = 0; i < (+count || 1); i++) {
      x += way === "r" ? 1 : way === "l" ? -1 : 0;
      y += way === "d" ? 1 : way === "u" ? -1 : 0;
      put();
    }
  }
  map.claims = new Map();
  for (const word of source.claims.split(" ").filter(Boolean)) {
    const [cell, rest] = word.split(":"), [list, more] = rest.split(";");
    map.claims.set(int36(cell), { more: int36(more), list: list.split(",").map(claim => {
      const [kind, index, count, start, len] = claim.split(".");
      return { kind: int36(kind), index: big36(index), count: big36(count), start: big36(start), len: big36(len) };
    }) });
  }
  return map;
}
const rangeOf = (map, cell) => {
  const start = BigInt(cell) * map.cellLen, end = start + map.cellLen;
  return [start, end < map.len ? end : map.len];
};
// The same rule as in the other pictures: alarm first, then the largest part in use; brightness is the share in use.
function lookOf(map, cell) {
  const [start, end] = rangeOf(map, cell), len = Number(end - start) || 1;
  let used = 0, main = null, dot = null;
  for (const part of map.cells[cell]) {
    const kind = map.kinds[part.kind];
    if (!kind.used) continue;
    used += Number(part.bytes);
    if (!main || kind.alarm || (!map.kinds[main.kind].alarm && part.bytes > main.bytes)) main = part;
    if (kind.metadata && (!dot || part.bytes > dot.bytes)) dot = part;
  }
  if (dot && map.kinds[main.kind].metadata) dot = null;
  return { kind: main ? main.kind : -1, share: Math.min(1, used / len), dot: dot ? dot.kind : -1 };
}

// ---- drawing -----------------------------------------------------------------------------------------------------------
const views = [];
function View(name, map) {
  const section = document.getElementById(name), stage = section.querySelector(".stage");
  const base = stage.querySelector(".base"), over = stage.querySelector(".over");
  const view = { name, map, section, stage, base, over, hover: -1, cursor: -1, only: -1 };
  view.looks = map.cells.map((_, cell) => lookOf(map, cell));
  const edge = (at, count, length) => Math.round(at * length / count);
  const box = cell => {
    const place = map.places[cell], x = place % map.width, y = Math.floor(place / map.width);
    const left = edge(x, map.width, view.w), top = edge(y, map.height, view.h);
    return [left, top, edge(x + 1, map.width, view.w) - left, edge(y + 1, map.height, view.h) - top, x, y];
  };
  view.size = () => {
    const scale = window.devicePixelRatio || 1;
    const room = Math.min(stage.clientWidth, map.width * 96);
    view.scale = scale;
    view.w = Math.max(map.width, Math.round(room * scale));
    view.h = Math.max(map.height, Math.round(view.w * map.height / map.width));
    for (const canvas of [base, over]) {
      canvas.width = view.w; canvas.height = view.h;
      canvas.style.width = view.w / scale + "px"; canvas.style.height = view.h / scale + "px";
    }
    stage.style.height = view.h / scale + "px";
    view.cell = view.w / map.width;
  };
  // The border between cells that are in a set and cells that are not.
  view.outline = (pen, inside, width, colour) => {
    pen.beginPath();
    for (let cell = 0; cell < map.cells.length; cell++) {
      if (!inside(cell)) continue;
      const [left, top, w, h, x, y] = box(cell);
      const open = (dx, dy) => {
        const nx = x + dx, ny = y + dy;
        if (nx < 0 || ny < 0 || nx >= map.width || ny >= map.height) return true;
        const other = map.index[ny * map.width + nx];
        return other < 0 || !inside(other);
      };
      if (open(0, -1)) { pen.moveTo(left, top); pen.lineTo(left + w, top); }
      if (open(0, 1)) { pen.moveTo(left, top + h); pen.lineTo(left + w, top + h); }
      if (open(-1, 0)) { pen.moveTo(left, top); pen.lineTo(left, top + h); }
      if (open(1, 0)) { pen.moveTo(left + w, top); pen.lineTo(left + w, top + h); }
    }
    pen.lineWidth = width * view.scale; pen.strokeStyle = colour; pen.lineCap = "square"; pen.stroke();
  };
  function hatch(pen, mark, ink) {
    pen.save();
    pen.beginPath();
    let any = false, lines = false;
    const small = view.cell / view.scale < 7;
    for (let cell = 0; cell < map.cells.length; cell++) {
      if (map.marks[cell] !== mark) continue;
      any = true;
      // A tiny cell on its own keeps its colour: the border around it is the mark.
      if (small && map.marks[cell - 1] !== mark && map.marks[cell + 1] !== mark) continue;
      const [left, top, w, h] = box(cell);
      pen.rect(left, top, w, h);
      lines = true;
    }
    if (lines) {
      pen.clip();
      const step = (mark === 2 ? 6 : 5) * view.scale;
      pen.beginPath();
      if (mark === 2) {
        for (let at = -view.h; at < view.w; at += step) { pen.moveTo(at, view.h); pen.lineTo(at + view.h, 0); }
        pen.lineWidth = 1.3 * view.scale; pen.strokeStyle = ink; pen.stroke();
      } else {
        const dot = 1.4 * view.scale;
        for (let y = step / 3; y < view.h; y += step) for (let x = step / 3; x < view.w; x += step) pen.rect(x, y, dot, dot);
        pen.fillStyle = ink; pen.fill();
      }
    }
    pen.restore();
    if (any) view.outline(pen, cell => map.marks[cell] === mark, mark === 2 ? 1.4 : 0.7, ink);
  }
  view.draw = () => {
    const pen = base.getContext("2d"), dark = isDark();
    const ground = rgb(variable("--ground")), ink = variable("--ink");
    const colour = kind => dark ? map.kinds[kind].dark : map.kinds[kind].light;
    const gap = view.cell / view.scale >= 12 ? Math.max(1, Math.round(view.scale)) : 0;
    const letters = view.cell / view.scale >= 16;
    pen.clearRect(0, 0, view.w, view.h);
    pen.textAlign = "center"; pen.textBaseline = "middle";
    pen.font = "600 " + Math.min(22 * view.scale, Math.max(9 * view.scale, view.cell * 0.42)) + "px ui-monospace, 'DejaVu Sans Mono', monospace";
    for (let cell = 0; cell < map.cells.length; cell++) {
      const [left, top, w, h] = box(cell);
      let { kind, share, dot } = view.looks[cell];
      if (view.only >= 0) {
        const part = map.cells[cell].find(part => part.kind === view.only), [start, end] = rangeOf(map, cell);
        kind = part ? view.only : -1; dot = -1;
        share = part ? Number(part.bytes) / Number(end - start) : 0;
      }
      // Alone, a kind is looked for: the least of it shows.
      const least = view.only >= 0 ? 0.75 : 0.35;
      const fill = kind < 0 ? mixed(ground, ground, 0) : mixed(ground, colour(kind), least + (1 - least) * share);
      pen.fillStyle = fill;
      pen.fillRect(left, top, w - gap, h - gap);
      if (dot >= 0) {
        const side = Math.max(1, Math.round(Math.min(w, h) * (letters ? 0.22 : view.cell / view.scale < 6 ? 0.6 : 0.45)));
        pen.fillStyle = mixed(ground, colour(dot), 1);
        if (letters) pen.fillRect(left + 2 * view.scale, top + 2 * view.scale, side, side);
        else pen.fillRect(left + ((w - gap - side) >> 1), top + ((h - gap - side) >> 1), side, side);
      }
    }
    hatch(pen, 1, ink);
    hatch(pen, 2, ink);
    if (letters) for (let cell = 0; cell < map.cells.length; cell++) {
      const [left, top, w, h] = box(cell), kind = view.only >= 0 ? (map.cells[cell].some(part => part.kind === view.only) ? view.only : -1) : view.looks[cell].kind;
      if (kind < 0) continue;
      const fill = mixed(ground, colour(kind), 0.35 + 0.65 * view.looks[cell].share), x = left + (w - gap) / 2, y = top + (h - gap) / 2;
      if (map.marks[cell]) {
        // A quiet plate, so that a letter on hatching can be read.
        const r = Math.min(view.cell, 44 * view.scale) * 0.32; pen.fillStyle = fill; pen.beginPath(); pen.arc(x, y, r, 0, 7); pen.fill();
      }
      pen.fillStyle = isBright(fill) ? "#111827" : "#ffffff";
      pen.fillText(map.kinds[kind].letter, x, y + view.scale);
    }
    view.overlay();
  };
  view.overlay = () => {
    const pen = over.getContext("2d"), ink = variable("--ink"), bg = variable("--bg"), accent = variable("--accent");
    pen.clearRect(0, 0, view.w, view.h);
    const place = state.place >= 0 ? places[state.place] : null, runs = place ? place[name] : [];
    if (place) {
      const inside = new Uint8Array(map.cells.length);
      for (const [first, last] of runs) inside.fill(1, first, last + 1);
      pen.globalAlpha = 0.62; pen.fillStyle = bg; pen.fillRect(0, 0, view.w, view.h); pen.globalAlpha = 1;
      for (let cell = 0; cell < inside.length; cell++) if (inside[cell]) { const [left, top, w, h] = box(cell); pen.clearRect(left, top, w, h); }
      if (runs.length) {
        view.outline(pen, cell => inside[cell], 4, bg);
        view.outline(pen, cell => inside[cell], 2, accent);
      }
      // What is too small to be seen gets a ring.
      if (view.cell / view.scale < 10 && runs.length <= 60) for (const [first, last] of runs) {
        if (last - first > 2) continue;
        const [left, top, w, h] = box(first);
        for (const [width, colour] of [[4, bg], [2, accent]]) {
          pen.beginPath(); pen.arc(left + w / 2, top + h / 2, 9 * view.scale, 0, 7);
          pen.lineWidth = width * view.scale; pen.strokeStyle = colour; pen.stroke();
        }
      }
    }
    pins(pen, place, ink, bg);
    for (const [cell, colour] of [[view.hover, ink], [view.cursor, accent]]) {
      if (cell < 0) continue;
      const [left, top, w, h] = box(cell), s = view.scale;
      pen.lineJoin = "miter";
      pen.lineWidth = 2 * s; pen.strokeStyle = bg; pen.strokeRect(left - 2.5 * s, top - 2.5 * s, w + 5 * s, h + 5 * s);
      pen.lineWidth = 1.5 * s; pen.strokeStyle = colour; pen.strokeRect(left - s, top - s, w + 2 * s, h + 2 * s);
    }
  };
  // Numbers of the findings, as long as they do not cover one another.
  function pins(pen, only, ink, bg) {
    const s = view.scale, placed = [];
    let drawn = 0;
    const order = only ? [only] : [...places.slice(data.causes), ...places.slice(0, data.causes)];
    for (const place of order) {
      if (drawn >= 60 || !place[name].length) continue;
      const [left, top, w, h] = box(place[name][0][0]), x = left + w / 2, y = top + h / 2;
      pen.font = "600 " + 10.5 * s + "px system-ui, sans-serif";
      const half = Math.max(9 * s, pen.measureText(place.label).width / 2 + 5 * s), near = 9 * s, far = half + 5 * s;
      const roomy = view.cell >= Math.max(36 * s, 3.4 * half), right = w / 2 - half - 3 * s, high = h / 2 - near - 3 * s;
      const spots = roomy ? [[right, -high], [-right, -high], [right, high], [-right, high], [right, 0], [-right, 0]] : [[far, -13 * s], [-far, -13 * s], [far, 13 * s], [-far, 13 * s], [far + 10 * s, 0], [-far - 10 * s, 0]];
      const spot = spots.map(([dx, dy]) => [x + dx, y + dy]).find(([px, py]) =>
        px > half && py > near && px < view.w - half && py < view.h - near &&
        placed.every(other => Math.abs(other[0] - px) > half + other[2] + 2 * s || Math.abs(other[1] - py) > 2 * near + 2 * s));
      if (!spot) continue;
      placed.push([...spot, half]); drawn++;
      // The line ends beside the cell, not on it.
      const way = Math.hypot(spot[0] - x, spot[1] - y), away = Math.min(0.6, (Math.min(w, 12 * s) * 0.5 + 2 * s) / way);
      const fromX = x + (spot[0] - x) * away, fromY = y + (spot[1] - y) * away;
      if (!roomy) for (const [width, colour] of [[3, bg], [1.3, ink]]) {
        pen.beginPath(); pen.moveTo(fromX, fromY); pen.lineTo(...spot);
        pen.lineWidth = width * s; pen.strokeStyle = colour; pen.stroke();
      }
      pen.beginPath(); pen.roundRect(spot[0] - half, spot[1] - near, 2 * half, 2 * near, near);
      pen.fillStyle = ink; pen.fill(); pen.lineWidth = 1.5 * s; pen.strokeStyle = bg; pen.stroke();
      pen.fillStyle = bg; pen.textAlign = "center"; pen.textBaseline = "middle"; pen.fillText(place.label, spot[0], spot[1] + 0.5 * s);
    }
    stage.dataset.pins = drawn;
  }
  view.at = event => {
    const area = over.getBoundingClientRect();
    const x = Math.floor((event.clientX - area.left) / area.width * map.width), y = Math.floor((event.clientY - area.top) / area.height * map.height);
    return x < 0 || y < 0 || x >= map.width || y >= map.height ? -1 : map.index[y * map.width + x];
  };
  view.tell = cell => {
    const readout = section.querySelector(".readout");
    if (cell < 0) { readout.textContent = "Point at a cell, or use the arrow keys."; return; }
    const [start, end] = rangeOf(map, cell), parts = [...map.cells[cell]].sort((a, b) => (a.bytes < b.bytes ? 1 : -1));
    const words = parts.slice(0, 3).map(part => map.kinds[part.kind].name + " " + percent(part.bytes, end - start)).join(", ");
    const more = parts.length > 3 ? " and more" : "", found = touching(name, cell).length;
    const marked = map.marks[cell] ? found ? ", " + found + (found === 1 ? " finding" : " findings") : ", marked" : "";
    readout.textContent = hex(start) + ".." + hex(end) + ": " + (words || "not mapped") + more + marked;
  };
  return view;
}

// ---- what is selected --------------------------------------------------------------------------------------------------
const state = { place: -1, view: null };
const places = data.places.map(place => ({ ...place, host: runsOf(place.host), guest: runsOf(place.guest) }));
const touching = (name, cell) => places.map((_, at) => at).filter(at => places[at][name].some(([first, last]) => first <= cell && cell <= last));
const buttons = [...document.querySelectorAll(".place")];
const content = document.querySelector("#inspector .content");
const idle = [...content.childNodes];
const buttonOf = at => buttons.find(button => +button.dataset.place === at);
const redraw = () => views.forEach(view => view.overlay());

function show(...children) { content.replaceChildren(...children); }
function link(at) {
  const place = places[at], button = make("button", { type: "button", class: "link" });
  button.textContent = at < data.causes ? "cause " + place.label + ": " + buttonOf(at).querySelector(".what").textContent : place.label + " " + place.code;
  button.addEventListener("click", () => selectPlace(at, true));
  return make("li", {}, button);
}
// Scrolls the list, never the page: the maps stay in sight.
function reveal(button) {
  const list = button.closest(".places"), item = button.getBoundingClientRect(), area = list.getBoundingClientRect();
  if (item.top < area.top) list.scrollTop -= area.top - item.top;
  else if (item.bottom > area.bottom) list.scrollTop += Math.min(item.bottom - area.bottom, item.top - area.top);
}
function clear() {
  state.place = -1;
  views.forEach(view => { view.cursor = -1; });
  buttons.forEach(button => button.setAttribute("aria-pressed", "false"));
}
function selectPlace(at, scroll) {
  const again = state.place === at;
  clear();
  if (again) { history.replaceState(null, "", location.pathname + location.search); show(...idle); redraw(); return; }
  state.place = at;
  const place = places[at], button = buttonOf(at), children = [];
  button.setAttribute("aria-pressed", "true");
  if (scroll) reveal(button);
  const kind = at < data.causes ? "Cause " : "Finding ";
  children.push(make("h3", {}, kind + place.label));
  if (place.code) children.push(make("p", {}, make("span", { class: "code" }, place.code), ", " + place.severity + ", " + place.sure + (place.errors === "1" ? "" : ", " + place.errors + " single errors")));
  children.push(make("p", {}, button.querySelector(".what").textContent));
  const cellsIn = runs => runs.reduce((sum, [first, last]) => sum + last - first + 1, 0);
  const words = [];
  for (const [name, title] of [["host", "file"], ["guest", "guest\u2019s disk"]]) {
    const count = cellsIn(place[name]);
    if (count) words.push(grouped(count) + (count === 1 ? " cell" : " cells") + " of the " + title);
    else if (place[name + "Beyond"]) words.push("a place past the end of the " + title);
  }
  children.push(make("p", { class: "soft" }, words.length ? "Shown: " + words.join(", ") + (place.more ? "; the first ones, there are more" : "") + "." : "It has no place on the maps."));
  const list = (title, lines) => { if (lines && lines.length) children.push(make("h4", {}, title), make("ul", {}, ...lines.map(line => make("li", {}, line)))); };
  list("Claimed by", place.owners);
  const code = data.codes[place.code];
  if (code) {
    for (const [title, words] of [["What it means", code.title], ["Why it matters", code.why], ["Usual cause", code.cause], ["Next", code.next], ["Specification", code.spec]])
      children.push(make("h4", {}, title), make("p", {}, words));
  }
  if (at < data.causes) {
    const explained = places.map((_, index) => index).filter(index => index >= data.causes && place.codes.includes(places[index].code));
    if (explained.length) children.push(make("h4", {}, "Findings it explains"), make("ul", {}, ...explained.slice(0, 12).map(link)));
    if (explained.length > 12) children.push(make("p", { class: "soft" }, "and " + grouped(explained.length - 12) + " more"));
  }
  show(...children);
  document.getElementById("inspector").scrollTop = 0;
  history.replaceState(null, "", "#" + (at < data.causes ? "cause=" : "finding=") + place.label);
  redraw();
}
function selectCell(view, cell) {
  clear();
  view.cursor = cell;
  const map = view.map, [start, end] = rangeOf(map, cell), children = [];
  children.push(make("h3", {}, map.title + ", cell " + grouped(cell) + " of " + grouped(map.cells.length)));
  children.push(make("p", { class: "mono" }, hex(start) + ".." + hex(end)), make("p", { class: "soft" }, human(end - start) + " (" + grouped(end - start) + " bytes)"));
  const parts = [...map.cells[cell]].sort((a, b) => (a.bytes < b.bytes ? 1 : -1));
  const sum = parts.reduce((sum, part) => sum + part.bytes, 0n);
  const row = (name, bytes) => make("tr", {}, make("td", {}, name), make("td", {}, grouped(bytes)), make("td", {}, percent(bytes, end - start)));
  const rows = parts.map(part => row(map.kinds[part.kind].letter + "  " + map.kinds[part.kind].name, part.bytes));
  if (sum < end - start) rows.push(row("not mapped", end - start - sum));
  children.push(make("table", {}, make("tbody", {}, ...rows)));
  const claims = map.claims.get(cell);
  if (claims) {
    const lines = claims.list.map(claim => {
      const name = map.kinds[claim.kind].name;
      const which = claim.count > 1n ? name + "s " + grouped(claim.index) + " to " + grouped(claim.index + claim.count - 1n) : name + " " + grouped(claim.index);
      return make("li", {}, which + " at ", make("span", { class: "mono" }, hex(claim.start) + ".." + hex(claim.start + claim.len)));
    });
    children.push(make("h4", {}, "Metadata here"), make("ul", {}, ...lines));
    if (claims.more) children.push(make("p", { class: "soft" }, "and " + grouped(claims.more) + " more"));
  }
  const found = touching(view.name, cell);
  if (found.length) {
    children.push(make("h4", {}, "Found here"), make("ul", {}, ...found.slice(0, 30).map(link)));
    if (found.length > 30) children.push(make("p", { class: "soft" }, "and " + grouped(found.length - 30) + " more"));
  } else children.push(make("p", { class: "soft" }, "Nothing in the list points here."));
  show(...children);
  document.getElementById("inspector").scrollTop = 0;
  history.replaceState(null, "", "#" + view.name + "=" + cell);
  redraw();
}

// ---- mouse and keys ----------------------------------------------------------------------------------------------------
function wire(view) {
  const { map, over } = view;
  over.addEventListener("mousemove", event => {
    const cell = view.at(event);
    if (cell !== view.hover) { view.hover = cell; view.tell(cell); view.overlay(); }
  });
  over.addEventListener("mouseleave", () => { view.hover = -1; view.tell(view.cursor); view.overlay(); });
  over.addEventListener("click", event => { const cell = view.at(event); if (cell >= 0) selectCell(view, cell); });
  over.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = map.cells.length - 1, from = view.cursor;
    let cell = from;
    const place = from < 0 ? 0 : map.places[from], x = place % map.width, y = Math.floor(place / map.width);
    const to = (nx, ny) => nx < 0 || ny < 0 || nx >= map.width || ny >= map.height || map.index[ny * map.width + nx] < 0 ? from : map.index[ny * map.width + nx];
    switch (event.key) {
      case "ArrowLeft": cell = to(x - 1, y); break;
      case "ArrowRight": cell = to(x + 1, y); break;
      case "ArrowUp": cell = to(x, y - 1); break;
      case "ArrowDown": cell = to(x, y + 1); break;
      case ",": cell = Math.max(0, from - 1); break;
      case ".": cell = Math.min(last, from + 1); break;
      case "Home": cell = 0; break;
      case "End": cell = last; break;
      case "Enter": case " ": if (from >= 0) selectCell(view, from); event.preventDefault(); return;
      default: return;
    }
    event.preventDefault();
    view.cursor = from < 0 ? 0 : cell;
    view.tell(view.cursor);
    view.overlay();
  });
  for (const button of view.section.querySelectorAll("button.kind")) button.addEventListener("click", () => {
    const kind = +button.dataset.kind;
    view.only = view.only === kind ? -1 : kind;
    for (const other of view.section.querySelectorAll("button.kind")) other.setAttribute("aria-pressed", String(+other.dataset.kind === view.only));
    view.draw();
  });
}
buttons.forEach(button => button.addEventListener("click", () => selectPlace(+button.dataset.place, false)));
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const step = event.key === "n" ? 1 : event.key === "p" ? -1 : 0;
  if (step && buttons.length) {
    const next = state.place < 0 ? (step > 0 ? data.causes : places.length - 1) : state.place + step;
    if (next >= 0 && next < places.length) selectPlace(next, true);
  } else if (event.key === "Escape") {
    clear(); show(...idle); redraw();
    history.replaceState(null, "", location.pathname + location.search);
  }
});

const schemeButton = document.getElementById("scheme");
function applyScheme(scheme) {
  if (scheme) root.dataset.scheme = scheme;
  schemeButton.textContent = isDark() ? "Light" : "Dark";
  views.forEach(view => view.draw());
}
schemeButton.hidden = false;
schemeButton.addEventListener("click", () => applyScheme(isDark() ? "light" : "dark"));
asked.addEventListener("change", () => applyScheme(""));

for (const name of ["host", "guest"]) {
  if (!data[name] || !data[name].cells) continue;
  const view = View(name, decode(data[name]));
  views.push(view);
  view.size();
  wire(view);
  // What the page shows, for whoever checks it.
  const sum = view.map.cells.flat().reduce((sum, part) => sum + part.bytes, 0n);
  root.dataset[name + "Cells"] = view.map.cells.length;
  root.dataset[name + "Bytes"] = sum;
}
const fit = () => { views.forEach(view => view.size()); applyScheme(""); };
let waiting = 0;
window.addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(fit); });
// What the address asks for, at the start and when it changes.
function choose() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const scheme = wanted.get("scheme");
  applyScheme(scheme === "dark" || scheme === "light" ? scheme : "");
  for (const [name, isCause] of [["cause", true], ["finding", false]]) {
    const at = places.findIndex((place, index) => place.label === wanted.get(name) && (index < data.causes) === isCause);
    if (at >= 0 && at !== state.place) selectPlace(at, true);
  }
  for (const view of views) {
    const cell = /^\d+$/.test(wanted.get(view.name) || "") ? Number(wanted.get(view.name)) : -1;
    if (cell >= 0 && cell < view.map.cells.length) { selectCell(view, cell); view.tell(cell); }
  }
}
window.addEventListener("hashchange", choose);
choose();
root.dataset.ready = "1";
})();
