// What the record says of an entry point at a step.

const OPERANDS = /[%@][\w.]+/g;
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
  const parts = [];
  let layers = false;
  for (const row of rows) {
    if (row.before && NOT_RUN.has(row.before.operator) && row.name[0] === "@") continue;
    if (row.after && NOT_RUN.has(row.after.operator) && row.name[0] === "@") continue;
    layers = layers || row.layer !== null;
    const key = row.layer !== null ? row.layer : layers ? "after the layers" : "before the layers";
    let part = parts.find((one) => one.key === key);
    if (part === undefined) parts.push((part = { key, rows: [] }));
    part.rows.push(row);
  }
  const joined = [];
  for (const part of parts) {
    const last = joined[joined.length - 1];
    const look = fingerprint(part);
    if (last !== undefined && typeof part.key === "number" && last.look === look) last.members.push(part);
    else joined.push({ look, members: [part] });
  }
  return joined.map((one) => one.members);
}

function fingerprint(part) {
  const local = new Map(part.rows.map((row, index) => [row.name, index]));
  const text = (form) => form === null ? "" : [form.operator, form.type,
    form.args.replace(OPERANDS, (name) => local.has(name) ? `#${local.get(name)}` : name.replace(/\d+/g, "")),
  ].join(" ");
  return part.rows.map((row) => `${row.status} ${text(row.before)} ${text(row.after)}`).join("\n").replace(/, \d+, /g, ", ");
}
