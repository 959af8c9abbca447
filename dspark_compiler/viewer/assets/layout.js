// Layered drawing of a small acyclic graph: operands above users, few crossings, straight long edges.

const GAP_X = 14, GAP_Y = 30;

// Nodes have id, width, height and operands (ids), operands first. Gives them x and y, returns edges as lists of points
// and the size of it all.
function layOut(nodes) {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  rank(nodes, byId);
  const { rows, edges } = fill(nodes, byId);
  for (let sweep = 0; sweep < 8; sweep += 1) order(rows, sweep % 2 === 0);
  const width = place(rows);
  let y = 0;
  for (const row of rows) {
    const height = Math.max(...row.map((item) => item.height));
    for (const item of row) Object.assign(item, { y, row: height });
    y += height + GAP_Y;
  }
  return { edges: edges.map(points), width, height: y - GAP_Y };
}

function rank(nodes, byId) {
  for (const node of nodes) {
    node.rank = Math.max(-1, ...node.operands.map((id) => byId.get(id).rank)) + 1;
    node.above = [];
    node.below = [];
  }
  // As low as its first user lets it be, so that side branches stand where they join.
  for (const node of [...nodes].reverse()) {
    const users = nodes.filter((other) => other.operands.includes(node.id));
    if (users.length > 0) node.rank = Math.min(...users.map((user) => user.rank)) - 1;
  }
  const lowest = Math.min(...nodes.map((node) => node.rank));
  for (const node of nodes) node.rank -= lowest;
}

// Rows of nodes, with a thin item in each row an edge passes.
function fill(nodes, byId) {
  const rows = [];
  const put = (item) => (rows[item.rank] = rows[item.rank] || []).push(item);
  nodes.forEach(put);
  const edges = [];
  for (const node of nodes) {
    for (const id of new Set(node.operands)) {
      const path = [byId.get(id)];
      for (let at = path[0].rank + 1; at < node.rank; at += 1) {
        path.push({ width: 6, height: 0, rank: at, above: [], below: [] });
        put(path[path.length - 1]);
      }
      path.push(node);
      for (let index = 1; index < path.length; index += 1) {
        path[index - 1].below.push(path[index]);
        path[index].above.push(path[index - 1]);
      }
      edges.push({ from: id, to: node.id, path });
    }
  }
  for (const row of rows) row.forEach((item, index) => (item.index = index));
  return { rows, edges };
}

// One sweep of the barycenter method (Sugiyama, Tagawa and Toda 1981).
function order(rows, down) {
  for (const row of down ? rows : [...rows].reverse()) {
    for (const item of row) {
      const next = down ? item.above : item.below;
      item.pull = next.length ? next.reduce((sum, other) => sum + other.index, 0) / next.length : item.index;
    }
    row.sort((one, other) => one.pull - other.pull);
    row.forEach((item, index) => (item.index = index));
  }
}

// Items keep their order and distance, and move towards the middle of what they are joined to.
function place(rows) {
  for (const row of rows) {
    let x = 0;
    for (const item of row) {
      item.x = x;
      x += item.width + GAP_X;
    }
  }
  for (let round = 0; round < 24; round += 1) {
    for (const row of round % 2 === 0 ? rows : [...rows].reverse()) settle(row);
  }
  const items = rows.flat();
  const left = Math.min(...items.map((item) => item.x));
  for (const item of items) item.x -= left;
  return Math.max(...items.map((item) => item.x + item.width));
}

function settle(row) {
  for (const item of row) {
    const next = [...item.above, ...item.below];
    const middle = (other) => other.x + other.width / 2;
    item.wish = next.length ? next.reduce((sum, other) => sum + middle(other), 0) / next.length - item.width / 2 : item.x;
  }
  // Runs of items that would overlap share one shift, the mean of what they wish for.
  const runs = [];
  for (const item of row) {
    let run = { items: [item], shift: item.wish, offset: [0], width: item.width };
    while (runs.length && runs[runs.length - 1].shift + runs[runs.length - 1].width + GAP_X > run.shift) {
      const before = runs.pop();
      const offset = [...before.offset, ...run.offset.map((one) => one + before.width + GAP_X)];
      const items = [...before.items, ...run.items];
      const shift = items.reduce((sum, one, index) => sum + one.wish - offset[index], 0) / items.length;
      run = { items, offset, shift, width: before.width + GAP_X + run.width };
    }
    runs.push(run);
  }
  for (const run of runs) run.items.forEach((item, index) => (item.x = run.shift + run.offset[index]));
}

function points({ from, to, path }) {
  const bends = [];
  path.forEach((item, index) => {
    const x = item.x + item.width / 2;
    if (index > 0) bends.push([x, item.y]);
    if (index < path.length - 1) bends.push([x, item.y + (index === 0 ? item.height : item.row)]);
  });
  return { from, to, bends };
}
