"use strict";
// Where the boxes and arrows of a picture go, from top to bottom.
//
// dagre lays out a graph well, in a time that grows faster than the graph. A net is mostly a
// row of small graphs: at its necks, boxes that no arrow passes by, all of it goes through one
// box. So each part between two necks is laid out alone, and hung below the one before it.
const layout = (() => {
  const GAP = 24;
  const MOST = 300; // boxes in a part; more would keep dagre busy for seconds

  // boxes: [{width, height}], in an order in which arrows point forward; arrows: [[from, to]].
  // Gives {boxes: [{x, y}] (centres), arrows: [[{x, y}, ...]], x, y, width, height}.
  return function layout(boxes, arrows) {
    const places = [{ x: 0, y: boxes.length ? boxes[0].height / 2 : 0 }];
    const lines = new Array(arrows.length);
    for (const part of parts(boxes.length, arrows)) {
      const size = part.last - part.first;
      const arrange = size === 1 ? inARow : size < MOST ? byDagre : byRank;
      const done = arrange(boxes, arrows, part);
      if (size > 1) straighten(boxes, arrows, part, done);
      const top = done.places.get(part.first), at = places[part.first];
      const moved = (point) => ({ x: point.x + at.x - top.x, y: point.y + at.y - top.y });
      for (const [box, place] of done.places) places[box] = moved(place);
      for (const [arrow, points] of done.lines) lines[arrow] = points.map(moved);
    }
    return { boxes: places, arrows: lines, ...bounds(boxes, places, lines) };
  };

  // From neck to neck; a neck is the last box of one part and the first of the next.
  function parts(count, arrows) {
    const from = Array.from({ length: count }, () => []);
    arrows.forEach(([source], arrow) => from[source].push(arrow));
    const found = [];
    let first = 0, farthest = 0, held = [];
    for (let at = 0; at < count; at += 1) {
      if (at > first && farthest <= at) {
        found.push({ first, last: at, arrows: held });
        first = at;
        held = [];
      }
      for (const arrow of from[at]) {
        held.push(arrow);
        farthest = Math.max(farthest, arrows[arrow][1]);
      }
    }
    return found;
  }

  function inARow(boxes, arrows, part) {
    const [a, b] = [boxes[part.first], boxes[part.last]];
    const y = a.height / 2 + GAP + b.height / 2;
    const line = [{ x: 0, y: a.height / 2 }, { x: 0, y: y - b.height / 2 }];
    return {
      places: new Map([[part.first, { x: 0, y: 0 }], [part.last, { x: 0, y }]]),
      lines: part.arrows.map((arrow) => [arrow, line]),
    };
  }

  // Arrows that are not drawn keep the first box above all others and the last below.
  function byDagre(boxes, arrows, part) {
    const graph = new dagre.graphlib.Graph({ multigraph: true });
    graph.setGraph({ ranksep: GAP, nodesep: 18, edgesep: 12 });
    const sources = new Set(), targets = new Set();
    for (let at = part.first; at <= part.last; at += 1) {
      graph.setNode(String(at), { width: boxes[at].width, height: boxes[at].height });
    }
    for (const arrow of part.arrows) {
      const [from, to] = arrows[arrow];
      sources.add(from);
      targets.add(to);
      graph.setEdge(String(from), String(to), {}, String(arrow));
    }
    for (let at = part.first; at <= part.last; at += 1) {
      const [first, last] = [String(part.first), String(part.last)];
      const hidden = { weight: 0, minlen: 1 };
      if (at !== part.first && !targets.has(at)) graph.setEdge(first, String(at), hidden, "above");
      if (at !== part.last && !sources.has(at)) graph.setEdge(String(at), last, hidden, "below");
    }
    dagre.layout(graph);
    const places = new Map();
    for (const at of graph.nodes()) {
      const { x, y } = graph.node(at);
      places.set(Number(at), { x, y });
    }
    const lines = part.arrows.map((arrow) => {
      const [from, to] = arrows[arrow].map(String);
      return [arrow, graph.edge(from, to, String(arrow)).points];
    });
    return { places, lines };
  }

  // The necks stand above the middle of what is between them, so that a net does not lean.
  // They are alone at their heights, and only the ends of their arrows move along.
  function straighten(boxes, arrows, part, done) {
    const xs = [];
    for (const [at, { x }] of done.places) {
      if (at !== part.first && at !== part.last) {
        xs.push(x - boxes[at].width / 2, x + boxes[at].width / 2);
      }
    }
    for (const [, points] of done.lines) for (const { x } of points.slice(1, -1)) xs.push(x);
    const middle = (Math.min(...xs) + Math.max(...xs)) / 2;
    for (const neck of [part.first, part.last]) done.places.get(neck).x = middle;
    const within = (x, box) => {
      const room = box.width / 2 - 20;
      return Math.max(middle - room, Math.min(middle + room, x));
    };
    for (const [arrow, points] of done.lines) {
      const [from, to] = arrows[arrow], end = points.length - 1;
      if (from === part.first) {
        const y = done.places.get(from).y + boxes[from].height / 2;
        points[0] = { x: within(points[1].x, boxes[from]), y };
      }
      if (to === part.last) {
        const y = done.places.get(to).y - boxes[to].height / 2;
        points[end] = { x: within(points[end - 1].x, boxes[to]), y };
      }
    }
  }

  // For a part too large for dagre: each box below all that feed it, in the order of the net.
  function byRank(boxes, arrows, part) {
    const ranks = new Map();
    const feeding = new Map();
    for (const arrow of part.arrows) {
      const [from, to] = arrows[arrow];
      feeding.set(to, [...(feeding.get(to) ?? []), from]);
    }
    const rows = [];
    for (let at = part.first; at <= part.last; at += 1) {
      const above = (feeding.get(at) ?? []).map((from) => ranks.get(from));
      const rank = at === part.first ? 0 : at === part.last ? rows.length
        : above.reduce((most, each) => Math.max(most, each + 1), 1);
      ranks.set(at, rank);
      (rows[rank] ??= []).push(at);
    }
    const places = new Map();
    let y = 0;
    for (const row of rows) {
      const height = Math.max(...row.map((at) => boxes[at].height));
      const width = row.reduce((sum, at) => sum + boxes[at].width + GAP, -GAP);
      let x = -width / 2;
      for (const at of row) {
        places.set(at, { x: x + boxes[at].width / 2, y: y + height / 2 });
        x += boxes[at].width + GAP;
      }
      y += height + GAP;
    }
    const lines = part.arrows.map((arrow) => {
      const [from, to] = arrows[arrow];
      const [a, b] = [places.get(from), places.get(to)];
      return [arrow, [
        { x: a.x, y: a.y + boxes[from].height / 2 }, { x: b.x, y: b.y - boxes[to].height / 2 },
      ]];
    });
    return { places, lines };
  }

  function bounds(boxes, places, lines) {
    let [left, right, top, bottom] = [0, 0, 0, 0];
    const hold = (x, y) => {
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
    };
    boxes.forEach((box, at) => {
      hold(places[at].x - box.width / 2, places[at].y - box.height / 2);
      hold(places[at].x + box.width / 2, places[at].y + box.height / 2);
    });
    for (const points of lines) for (const point of points) hold(point.x, point.y);
    return { x: left, y: top, width: right - left, height: bottom - top };
  }
})();
