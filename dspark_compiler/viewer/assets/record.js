// What the record says of an entry point at a step.

const OPERANDS = /[%@][\w.]+/g;
const BEFORE = "before the layers", AFTER = "after the layers";
const NUMBERED = new Set(["dspark.attention", "dspark.layer_output"]); // these are told the layer they are of
const NOT_RUN = new Set(["input", "param", "state", "output"]);

// The form a node had at a step, or null where it was not there.
function formAt(node, step) {
  const form = node.forms.find((one) => one.first <= step && step <= one.last);
  return form === undefined ? null : form;
}

// An entry point's nodes: name, layer, and forms with the names of what each reads.
function readEntry(entry) {
  return entry.nodes.map(([name, layer, forms]) => ({
    name,
    layer,
    forms: forms.map(([first, last, operator, args, type]) => ({
      first, last, operator, args, type, operands: args.match(OPERANDS) || [],
    })),
  }));
}

// Each node that was there before or after: its two forms (null where it was not), and what became of it.
function compare(nodes, before, after) {
  const rows = [];
  for (const node of nodes) {
    const [old, now] = [formAt(node, before), formAt(node, after)];
    if (old === null && now === null) continue;
    const status = old === null ? "added" : now === null ? "removed" : old === now ? "same" : "changed";
    rows.push({ name: node.name, layer: node.layer, before: old, after: now, status });
  }
  return rows;
}

// Operators by name, with their numbers before and after.
function countOperators(rows) {
  const counts = new Map();
  for (const row of rows) {
    for (const side of ["before", "after"]) {
      const form = row[side];
      if (form === null || NOT_RUN.has(form.operator)) continue;
      if (!counts.has(form.operator)) counts.set(form.operator, { before: 0, after: 0 });
      counts.get(form.operator)[side] += 1;
    }
  }
  return [...counts].sort(([one], [other]) => (one < other ? -1 : 1));
}

// Parts of a graph in order: what comes before the layers, each layer, what comes after. Layers that follow each other
// and differ in nothing but numbers are one part.
function divide(rows) {
  const values = rows.filter((row) => row.name[0] !== "@");
  const last = values.findLastIndex((row) => row.layer !== null);
  const parts = new Map();
  values.forEach((row, index) => {
    const key = row.layer === null ? (index < last ? BEFORE : AFTER) : row.layer;
    if (!parts.has(key)) parts.set(key, { key, rows: [] });
    parts.get(key).rows.push(row);
  });
  const place = ({ key }) => (key === BEFORE ? -1 : key === AFTER ? Infinity : key);
  const joined = [];
  for (const part of [...parts.values()].sort((one, other) => place(one) - place(other))) {
    const above = joined[joined.length - 1];
    const look = fingerprint(part);
    if (above !== undefined && typeof part.key === "number" && above.look === look) above.members.push(part);
    else joined.push({ look, members: [part] });
  }
  return joined.map((one) => one.members);
}

// What a part is but for names and its own number: what is read is told by where it was first met.
function fingerprint({ key, rows }) {
  const met = new Map(rows.map((row, index) => [row.name, index]));
  const number = (name) => {
    if (!met.has(name)) met.set(name, met.size);
    return `#${met.get(name)}`;
  };
  const own = new RegExp(`, ${key}(?=,|$)`);
  const text = (form) => {
    if (form === null) return "";
    const args = form.args.replace(OPERANDS, number);
    return [form.operator, form.type, NUMBERED.has(form.operator) ? args.replace(own, ", layer") : args].join(" ");
  };
  return rows.map((row) => `${row.status} ${text(row.before)} ${text(row.after)}`).join("\n");
}
