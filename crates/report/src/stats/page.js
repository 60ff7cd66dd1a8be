"use strict";
(() => {
const root = document.documentElement;
addEventListener("error", event => { root.dataset.error = event.message; });
const nodes = JSON.parse(document.getElementById("data").textContent);
const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
// Sizes can be larger than what a number holds exactly.
const human = bytes => {
  let unit = 0, value = Number(bytes);
  while (value >= 1024 && unit < 6) { value /= 1024; unit++; }
  return (Number.isInteger(value) ? value : value.toFixed(2)) + " " + UNITS[unit];
};
const hex = bytes => "0x" + bytes.toString(16);
const grouped = number => String(number).replace(/\B(?=(\d{3})+$)/g, "\u00a0");
const channels = colour => { const [r, g, b] = colour.match(/\w\w/g).map(part => parseInt(part, 16)); return [r, g, b]; };
const maps = [];

function Heat(figure) {
  const node = nodes[figure.dataset.node], at = { reads: 1, writes: 2, errors: 3 }[figure.dataset.kind];
  const cell = BigInt(node.cell), size = BigInt(node.size), count = node.cells;
  const values = new Map(node.touched.filter(entry => entry[at] > 0).map(entry => [entry[0], entry]));
  // About four times as wide as high.
  let columns = 1;
  while (columns < 128 && columns * columns < 4 * count) columns *= 2;
  const rows = Math.ceil(count / columns), most = Math.max(...[...values.values()].map(entry => entry[at]));
  const canvas = figure.querySelector("canvas"), readout = figure.querySelector(".readout"), offsets = figure.querySelector(".offsets");
  const idle = readout.textContent;
  let cursor = -1, side = 8, high = 8;
  const heat = value => most === 1 ? 1 : 0.3 + 0.7 * Math.log(value) / Math.log(most);
  const map = {};
  map.draw = () => {
    const scale = devicePixelRatio || 1, wide = canvas.parentElement.clientWidth - 84;
    side = wide / columns;
    high = Math.min(side, 24);
    canvas.style.height = rows * high + "px";
    canvas.width = Math.round(wide * scale);
    canvas.height = Math.round(rows * high * scale);
    const pen = canvas.getContext("2d"), style = getComputedStyle(figure);
    const ground = channels(style.getPropertyValue("--ground").trim()), hot = channels(style.getPropertyValue("--hot").trim());
    for (let index = 0; index < count; index++) {
      const column = index % columns, row = Math.floor(index / columns), entry = values.get(index);
      const part = entry ? heat(entry[at]) : 0;
      pen.fillStyle = "rgb(" + ground.map((from, i) => Math.round(from + (hot[i] - from) * part)).join() + ")";
      const left = Math.round(column * side * scale), top = Math.round(row * high * scale), gap = side * scale > 5 ? 1 : 0;
      pen.fillRect(left, top, Math.round((column + 1) * side * scale) - left - gap, Math.round((row + 1) * high * scale) - top - gap);
      if (index === cursor) {
        pen.strokeStyle = style.getPropertyValue("--ink").trim();
        pen.lineWidth = 2 * scale;
        pen.strokeRect(left, top, side * scale, high * scale);
      }
    }
    const spans = [];
    let step = 1;
    while (step * high < 18) step *= 2;
    for (let row = 0; row < rows; row += step) {
      const span = document.createElement("span");
      span.textContent = row ? human(cell * BigInt(row * columns)) : "0";
      span.style.top = row * high + Math.max(0, high / 2 - 6) + "px";
      spans.push(span);
    }
    offsets.replaceChildren(...spans);
  };
  const tell = index => {
    if (index < 0) { readout.textContent = idle; return; }
    const start = cell * BigInt(index), end = start + cell < size ? start + cell : size;
    const [, reads, writes, errors] = node.touched.find(entry => entry[0] === index) || [0, 0, 0, 0];
    readout.textContent = hex(start) + ".." + hex(end) + " (" + human(end - start) + "): " + grouped(reads) + " reads, " + grouped(writes) + " writes, " + grouped(errors) + " failures";
  };
  const move = index => { cursor = index; tell(index); map.draw(); };
  canvas.addEventListener("mousemove", event => {
    const area = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - area.left) / area.width * columns), row = Math.floor((event.clientY - area.top) / area.height * rows);
    const index = row * columns + column;
    const inside = column >= 0 && column < columns && index >= 0 && index < count;
    if ((inside ? index : -1) !== cursor) move(inside ? index : -1);
  });
  canvas.addEventListener("mouseleave", () => move(-1));
  canvas.addEventListener("keydown", event => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const to = cursor < 0 ? 0 : cursor + by;
    if (to >= 0 && to < count) move(to);
  });
  map.draw();
  // What the page shows, for whoever checks it.
  figure.dataset.drawn = values.size;
  figure.dataset.rows = rows;
  return map;
}
for (const figure of document.querySelectorAll("figure[data-kind]")) maps.push(Heat(figure));
let waiting = 0;
const again = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => maps.forEach(map => map.draw())); };
addEventListener("resize", again);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
root.dataset.ready = "1";
})();
