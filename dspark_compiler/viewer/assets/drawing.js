// One part of a graph as SVG: a box for each operator, what it reads from elsewhere above it.

const SVG = "http://www.w3.org/2000/svg";
const CHARACTER = 6.7, LINE = 15, PADDING = 7; // pixels of the font the boxes are set in
const MARKS = { added: "+ ", removed: "− ", changed: "~ ", same: "", outer: "" };

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// The rows of a part that were there on one side, as boxes; the weights and states they read are lines in them.
function boxes(rows, side) {
  const shown = rows.filter((row) => row[side] !== null);
  const inside = new Set(shown.map((row) => row.name));
  const outer = new Map();
  const found = shown.map((row) => {
    const form = row[side];
    const values = [...new Set(form.operands.filter((name) => name[0] === "%"))];
    for (const name of values) {
      if (!inside.has(name)) outer.set(name, box(name, "outer", [name], []));
    }
    const stored = form.operands.filter((name) => name[0] === "@").map(shortened);
    const lines = [MARKS[row.status] + form.operator, row.name, form.type, ...stored].filter(Boolean);
    return box(row.name, row.status, lines, values);
  });
  return [...outer.values(), ...found];
}

function box(id, status, lines, operands) {
  const width = Math.max(...lines.map((line) => line.length)) * CHARACTER + 2 * PADDING;
  return { id, status, lines, operands, width, height: lines.length * LINE + 2 * PADDING - 4 };
}

// "@model.layers.3.mlp.up_proj.weight" -> "@up_proj.weight"
function shortened(name) {
  const parts = name.slice(1).split(".");
  return "@" + (parts.length > 2 ? parts.slice(-2) : parts).join(".");
}

// `choose(name)` is called with the box that is clicked, or left with Enter or Space.
function draw(rows, side, choose) {
  const nodes = boxes(rows, side);
  if (nodes.length === 0) return element("p", { class: "none" }, side === "before" ? "not there yet" : "nothing is left");
  const { edges, width, height } = layOut(nodes);
  const svg = shape("svg", {
    width: width + 4, height: height + 4, viewBox: `-2 -2 ${width + 4} ${height + 4}`, role: "group", "aria-label": side,
  });
  for (const edge of edges) {
    svg.append(shape("path", { d: curve(edge.bends), class: "edge", "data-from": edge.from, "data-to": edge.to }));
  }
  for (const node of nodes) svg.append(boxShape(node, choose));
  svg.addEventListener("keydown", (event) => walk(event, svg));
  return svg;
}

function boxShape(node, choose) {
  const group = shape("g", {
    class: `node ${node.status}`, transform: `translate(${node.x},${node.y})`, "data-name": node.id,
    tabindex: 0, role: "button", "aria-label": node.lines.join(", "),
  });
  group.append(shape("rect", { width: node.width, height: node.height, rx: 4 }));
  node.lines.forEach((line, index) => {
    const text = shape("text", { x: PADDING, y: PADDING + 8 + index * LINE, class: index === 0 ? "operator" : "" });
    text.textContent = line;
    group.append(text);
  });
  group.addEventListener("click", () => choose(node.id));
  group.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(node.id);
  });
  return group;
}

function curve(bends) {
  const [[x, y], ...rest] = bends;
  let path = `M${x},${y}`;
  let [lastX, lastY] = [x, y];
  for (const [nextX, nextY] of rest) {
    const middle = (lastY + nextY) / 2;
    path += nextX === lastX ? `L${nextX},${nextY}` : `C${lastX},${middle} ${nextX},${middle} ${nextX},${nextY}`;
    [lastX, lastY] = [nextX, nextY];
  }
  return path;
}

// Up goes to what a box reads, down to what reads it.
function walk(event, svg) {
  const name = event.target.getAttribute("data-name");
  const [mine, other] = { ArrowUp: ["to", "from"], ArrowDown: ["from", "to"] }[event.key] || [];
  if (name === null || mine === undefined) return;
  const edge = [...svg.querySelectorAll(".edge")].find((one) => one.getAttribute(`data-${mine}`) === name);
  if (edge === undefined) return;
  event.preventDefault();
  svg.querySelector(`[data-name="${CSS.escape(edge.getAttribute(`data-${other}`))}"]`).focus();
}

// Marks a box on both sides, and the lines to and from it.
function mark(root, name) {
  for (const one of root.querySelectorAll(".chosen")) one.classList.remove("chosen");
  if (name === null) return;
  const quoted = CSS.escape(name);
  for (const one of root.querySelectorAll(`[data-name="${quoted}"],[data-from="${quoted}"],[data-to="${quoted}"]`)) {
    one.classList.add("chosen");
  }
}
