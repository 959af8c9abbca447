// What is chosen, and the panels that show it. The address keeps the choice, so that a view can be linked to.

const record = JSON.parse(document.getElementById("record").textContent);
const entries = Object.fromEntries(Object.entries(record.entries).map(([name, entry]) => [name, readEntry(entry)]));
const chosen = { step: 0, entry: Object.keys(entries)[0], base: "previous" };
const at = (id) => document.getElementById(id);
const signed = (number) => (number > 0 ? `+${number}` : number < 0 ? `−${-number}` : "0");

function compared() {
  const before = chosen.base === "first" ? 0 : Math.max(0, chosen.step - 1);
  return compare(entries[chosen.entry], before, chosen.step);
}

function show() {
  const { name } = record.steps[chosen.step];
  document.querySelector(`input[name=step][value="${chosen.step}"]`).checked = true;
  at("entry").value = chosen.entry;
  at("base").value = chosen.base;
  at("heading").textContent = `${chosen.step} ${name}: ${chosen.entry}`;
  history.replaceState(null, "", `#step=${chosen.step}&entry=${chosen.entry}&base=${chosen.base}`);
  const rows = compared();
  showRemarks("matched");
  showRemarks("declined");
  showOperators(countOperators(rows));
  showGraph(rows);
  for (const table of document.querySelectorAll("[data-entry]")) table.hidden = table.dataset.entry !== chosen.entry;
  for (const cell of document.querySelectorAll("[data-step]")) {
    cell.classList.toggle("here", cell.dataset.step === String(chosen.step));
  }
  close();
}

// Matches or declines of this entry point, and those of none in particular.
function showRemarks(kind) {
  const place = at(kind);
  place.replaceChildren();
  for (const { text, entry, where } of record.steps[chosen.step][kind]) {
    if (entry !== null && entry !== chosen.entry) continue;
    const list = element("ul");
    const part = element("details", {}, element("summary", {}, text, element("b", {}, ` × ${where.length}`)), list);
    part.addEventListener("toggle", () => {
      if (list.childElementCount === 0) list.append(...where.map((name) => element("li", {}, link(name, entry))));
    });
    place.append(part);
  }
  if (place.childElementCount === 0) place.append(element("p", { class: "none" }, "none in this entry point"));
}

function link(name, entry) {
  if (entry === null) return name;
  const button = element("button", { type: "button" }, name);
  button.addEventListener("click", () => reveal(`%${name}`));
  return button;
}

// Operators whose number changed, the others in one line.
function showOperators(counts) {
  const body = at("operators").tBodies[0];
  const sum = (list) => list.reduce(
    (sums, [, { before, after }]) => ({ before: sums.before + before, after: sums.after + after }), { before: 0, after: 0 },
  );
  const changed = counts.filter(([, { before, after }]) => before !== after);
  const others = counts.filter(([, { before, after }]) => before === after);
  body.replaceChildren(...changed.map(([name, found]) => operatorRow(name, found, "")));
  if (others.length > 0) {
    const row = operatorRow(`${others.length} others`, sum(others), "");
    row.title = others.map(([name, { after }]) => `${name}: ${after}`).join("\n");
    body.append(row);
  }
  body.append(operatorRow("all", sum(counts), "total"));
}

function operatorRow(name, { before, after }, kind) {
  const change = after > before ? "more" : after < before ? "fewer" : "";
  const row = element("tr", { class: `${kind} ${change}` }, element("th", { scope: "row" }, name));
  row.append(...[before, after, signed(after - before)].map((value) => element("td", {}, String(value))));
  return row;
}

function showGraph(rows) {
  const place = at("graph");
  place.replaceChildren();
  for (const members of divide(rows)) place.append(partOf(members));
  const changed = place.querySelector("details[data-changed]");
  if (changed === null) return;
  changed.open = true;
  changed.drawMember(changed.members[0]); // now, not when the event of its opening arrives
}

// A part of the graph, drawn when it is opened; of layers that are alike one at a time.
function partOf(members) {
  const [first] = members;
  const part = element("details", { class: "part" }, element("summary", {}, heading(members), ...tally(first.rows)));
  if (first.rows.some((row) => row.status !== "same")) part.dataset.changed = "";
  const panes = element("div", { class: "columns panes" });
  let drawn = null;
  part.members = members;
  part.drawMember = (member) => {
    if (drawn === member) return;
    drawn = member;
    panes.replaceChildren(...["before", "after"].map((side) => {
      const picture = draw(member.rows, side, (name) => describe(name, part));
      return element("div", {}, element("h4", {}, side), element("div", { class: "scroll" }, picture));
    }));
    panes.querySelectorAll(".scroll").forEach(scrollToChange);
  };
  if (members.length > 1) {
    const select = element("select", {}, ...members.map((one, index) => element("option", { value: index }, String(one.key))));
    select.addEventListener("change", () => part.drawMember(members[select.value]));
    part.choice = select;
    part.append(element("p", {}, element("label", {}, "Layer ", select)));
  }
  part.append(panes);
  part.addEventListener("toggle", () => {
    if (part.open && drawn === null) part.drawMember(first);
  });
  return part;
}

// The first box that changed comes into sight, without moving the page.
function scrollToChange(pane) {
  const box = pane.querySelector(".node.removed, .node.added, .node.changed") || pane.querySelector(".node");
  if (box === null) return;
  const [inner, outer] = [box.getBoundingClientRect(), pane.getBoundingClientRect()];
  pane.scrollLeft += inner.left + inner.width / 2 - outer.left - outer.width / 2;
  pane.scrollTop += inner.top - outer.top - 40;
}

function heading(members) {
  const [first, last] = [members[0].key, members[members.length - 1].key];
  if (typeof first !== "number") return first;
  return members.length === 1 ? `layer ${first}` : `layers ${first} to ${last}, alike`;
}

function tally(rows) {
  const number = (side) => rows.filter((row) => row[side] !== null && !NOT_RUN.has(row[side].operator)).length;
  const found = [element("span", {}, ` ${number("before")} → ${number("after")} operators`)];
  for (const status of ["removed", "added", "changed"]) {
    const count = rows.filter((row) => row.status === status).length;
    if (count > 0) found.push(element("span", { class: status }, ` ${MARKS[status].trim()}${count}`));
  }
  return found;
}

// Shows a node of this entry point: opens its part, and puts the focus on its box.
function reveal(name) {
  for (const part of document.querySelectorAll("details.part")) {
    const index = part.members.findIndex((member) => member.rows.some((row) => row.name === name));
    if (index < 0) continue;
    part.open = true;
    if (part.choice) part.choice.value = index;
    part.drawMember(part.members[index]);
    const box = part.querySelector(`[data-name="${CSS.escape(name)}"]`);
    box.scrollIntoView({ block: "center", inline: "center" });
    box.focus({ preventScroll: true });
    describe(name, part);
    return;
  }
}

function describe(name, part) {
  mark(at("graph"), name);
  const row = compared().find((one) => one.name === name);
  const lines = [];
  for (const side of ["before", "after"]) {
    const form = row === undefined ? null : row[side];
    if (form === null) continue;
    lines.push(element("dt", {}, row.status === "same" ? "reads" : side));
    lines.push(element("dd", {}, form.args ? `${form.operator}(${form.args})` : form.operator, form.type && `: ${form.type}`));
    if (row.status === "same") break;
  }
  const away = element("button", { type: "button", class: "close" }, "Close");
  away.addEventListener("click", close);
  at("details").replaceChildren(away, element("h2", {}, name), element("dl", {}, ...lines));
  at("details").hidden = false;
}

function close() {
  at("details").hidden = true;
  mark(at("graph"), null);
}

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const step = Number.parseInt(given.get("step"), 10);
  if (step in record.steps) chosen.step = step;
  if (given.get("entry") in entries) chosen.entry = given.get("entry");
  if (given.get("base") === "first" || given.get("base") === "previous") chosen.base = given.get("base");
  show();
}

for (const input of document.querySelectorAll("input[name=step]")) {
  input.addEventListener("change", () => { chosen.step = Number(input.value); show(); });
}
at("entry").addEventListener("change", (event) => { chosen.entry = event.target.value; show(); });
at("base").addEventListener("change", (event) => { chosen.base = event.target.value; show(); });
addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
addEventListener("hashchange", read);
chosen.step = Math.min(1, record.steps.length - 1);
read();
