"use strict";
// Where the boxes and arrows of a picture go, from top to bottom.
//
// dagre lays out a graph well, in a time that grows faster than the graph. A net is mostly a
// row of small graphs: at its necks, boxes that no arrow passes by, all of it goes through one
// box. So each part between two necks is laid out alone, and hung below the one before it;
// blocks that repeat are laid out once.
const layout = (() => {
  const GAP = 24;
  const MOST = 300; // boxes in a part; more would keep dagre busy for seconds

  // boxes: [{width, height}], in an order in which arrows point forward; arrows: [[from, to]].
  // Gives {boxes: [{x, y}] (centres), arrows: [[{x, y}, ...]], x, y, width, height}.
  return function layout(boxes, arrows) {
    const places = [{ x: 0, y: boxes.length ? boxes[0].height / 2 : 0 }];
    const lines = new Array(arrows.length);
    const known = new Map();
    for (const { first, last, held } of parts(boxes.length, arrows)) {
      const sizes = boxes.slice(first, last + 1).map(({ width, height }) => ({ width, height }));
      const inside = held.map((arrow) => arrows[arrow].map((at) => at - first));
      const key = JSON.stringify([sizes, inside]);
      if (!known.has(key)) known.set(key, arranged(sizes, inside));
      const done = known.get(key), start = places[first];
      const moved = ({ x, y }) => ({
        x: x + start.x - done.places[0].x, y: y + start.y - done.places[0].y,
      });
      done.places.forEach((place, at) => { places[first + at] = moved(place); });
      done.lines.forEach((points, at) => { lines[held[at]] = points.map(moved); });
    }
    return { boxes: places, arrows: lines, ...bounds(boxes, places, lines) };
  };

  // From neck to neck; a neck is the last box of one part and the first of the next. ``held``
  // are the arrows of a part.
  function parts(count, arrows) {
    const leaving = Array.from({ length: count }, () => []);
    arrows.forEach(([source], arrow) => leaving[source].push(arrow));
    const found = [];
    let first = 0, farthest = 0, held = [];
    for (let at = 0; at < count; at += 1) {
      if (at > first && farthest <= at) {
        found.push({ first, last: at, held });
        first = at;
        held = [];
      }
      for (const arrow of leaving[at]) {
        held.push(arrow);
        farthest = Math.max(farthest, arrows[arrow][1]);
      }
    }
    return found;
  }

  // A part: the places of its boxes, and the points of its arrows.
  function arranged(boxes, arrows) {
    if (boxes.length === 2) return inARow(boxes, arrows);
    return straight(boxes, arrows, (boxes.length < MOST ? byDagre : byRank)(boxes, arrows));
  }

  function inARow([a, b], arrows) {
    const y = a.height / 2 + GAP + b.height / 2;
    const line = [{ x: 0, y: a.height / 2 }, { x: 0, y: y - b.height / 2 }];
    return { places: [{ x: 0, y: 0 }, { x: 0, y }], lines: arrows.map(() => line) };
  }

  // Arrows that are not drawn keep the first box above all others and the last below.
  function byDagre(boxes, arrows) {
    const graph = new dagre.graphlib.Graph({ multigraph: true });
    graph.setGraph({ ranksep: GAP, nodesep: 18, edgesep: 12 });
    boxes.forEach((box, at) => graph.setNode(String(at), { ...box }));
    const sources = new Set([boxes.length - 1]), targets = new Set([0]);
    arrows.forEach(([from, to], arrow) => {
      sources.add(from);
      targets.add(to);
      graph.setEdge(String(from), String(to), {}, String(arrow));
    });
    const last = String(boxes.length - 1);
    boxes.forEach((_, at) => {
      if (!targets.has(at)) graph.setEdge("0", String(at), { weight: 0 }, "above");
      if (!sources.has(at)) graph.setEdge(String(at), last, { weight: 0 }, "below");
    });
    dagre.layout(graph);
    return {
      places: boxes.map((_, at) => graph.node(String(at))).map(({ x, y }) => ({ x, y })),
      lines: arrows.map(([from, to], arrow) =>
        graph.edge(String(from), String(to), String(arrow)).points),
    };
  }

  // The necks stand above the middle of what is between them, so that a net does not lean.
  // They are alone at their heights, and only the ends of their arrows move along.
  function straight(boxes, arrows, { places, lines }) {
    const last = boxes.length - 1;
    const xs = lines.flatMap((points) => points.slice(1, -1).map(({ x }) => x));
    places.slice(1, -1).forEach(({ x }, at) => {
      xs.push(x - boxes[at + 1].width / 2, x + boxes[at + 1].width / 2);
    });
    const [least, most] = range(xs), middle = (least + most) / 2;
    places[0].x = middle;
    places[last].x = middle;
    const within = (x, box) => {
      const room = box.width / 2 - 20;
      return Math.max(middle - room, Math.min(middle + room, x));
    };
    arrows.forEach(([from, to], arrow) => {
      const points = lines[arrow], end = points.length - 1;
      if (from === 0) {
        const y = places[0].y + boxes[0].height / 2;
        points[0] = { x: within(points[1].x, boxes[0]), y };
      }
      if (to === last) {
        const y = places[last].y - boxes[last].height / 2;
        points[end] = { x: within(points[end - 1].x, boxes[last]), y };
      }
    });
    return { places, lines };
  }

  // For a part too large for dagre: each box below all that feed it, in the order of the net.
  function byRank(boxes, arrows) {
    const ranks = new Array(boxes.length).fill(1);
    ranks[0] = 0;
    const leaving = boxes.map(() => []);
    for (const [from, to] of arrows) leaving[from].push(to);
    leaving.forEach((targets, from) => {
      for (const to of targets) ranks[to] = Math.max(ranks[to], ranks[from] + 1);
    });
    ranks[boxes.length - 1] = range(ranks)[1] + 1;
    const rows = [];
    ranks.forEach((rank, at) => (rows[rank] ??= []).push(at));
    const places = [];
    let y = 0;
    for (const row of rows.filter(Boolean)) {
      const height = range(row.map((at) => boxes[at].height))[1];
      let x = -row.reduce((sum, at) => sum + boxes[at].width + GAP, -GAP) / 2;
      for (const at of row) {
        places[at] = { x: x + boxes[at].width / 2, y: y + height / 2 };
        x += boxes[at].width + GAP;
      }
      y += height + GAP;
    }
    const lines = arrows.map(([from, to]) => [
      { x: places[from].x, y: places[from].y + boxes[from].height / 2 },
      { x: places[to].x, y: places[to].y - boxes[to].height / 2 },
    ]);
    return { places, lines };
  }

  function bounds(boxes, places, lines) {
    const points = lines.flat();
    boxes.forEach(({ width, height }, at) => {
      const { x, y } = places[at];
      points.push({ x: x - width / 2, y: y - height / 2 }, { x: x + width / 2, y: y + height / 2 });
    });
    const [left, right] = range(points.map(({ x }) => x));
    const [top, bottom] = range(points.map(({ y }) => y));
    return { x: left, y: top, width: right - left, height: bottom - top };
  }

  function range(numbers) {
    return numbers.reduce(([least, most], number) =>
      [Math.min(least, number), Math.max(most, number)], [Infinity, -Infinity]);
  }
})();

// Boxes in an order in which arrows point forward: a chain is drawn in the place of its first
// box, and its last may have come after others.
function inOrder(boxes, arrows) {
  const waiting = new Array(boxes.length).fill(0);
  const following = boxes.map(() => []);
  for (const [from, to] of arrows) {
    waiting[to] += 1;
    following[from].push(to);
  }
  const ready = boxes.map((_, at) => at).filter((at) => !waiting[at]).reverse();
  const order = [];
  while (ready.length) {
    const at = ready.pop();
    order.push(at);
    const freed = following[at].filter((to) => (waiting[to] -= 1) === 0);
    ready.push(...freed.reverse());
  }
  const place = new Array(boxes.length);
  order.forEach((at, index) => { place[at] = index; });
  return {
    boxes: order.map((at) => boxes[at]),
    arrows: arrows.map(([from, to]) => [place[from], place[to]]),
  };
}

// An arrow's points as a path without corners.
function smooth(points) {
  const [first, ...rest] = points;
  let path = `M${round(first)}`;
  if (rest.length < 2) return `${path}L${round(rest[rest.length - 1])}`;
  for (let at = 0; at < rest.length - 1; at += 1) {
    const [a, b] = [rest[at], rest[at + 1]];
    const end = at === rest.length - 2 ? b : { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
    path += `Q${round(a)} ${round(end)}`;
  }
  return path;
}

const round = (point) => `${Math.round(point.x * 10) / 10} ${Math.round(point.y * 10) / 10}`;
