"use strict";
// Draws the net before and after, and shows the layer that was chosen. Names come from files
// of anybody, so that they are put in as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const net = document.querySelector(".net");
  const panes = new Map();
  const WIDTH = 288, ROW = 18, PAD = 5;
  const LETTER = 6.9, SMALL = 6.2; // no letter of a name, or of a type, is wider

  const layerOf = (at) => data.layers[at] ?? data.inputs[at];

  function svg(name, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function html(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // The end of a name tells more than its middle.
  function cut(text, most) {
    const letters = [...text];
    if (letters.length <= most) return text;
    const end = Math.floor(most * 0.6);
    return [...letters.slice(0, most - 1 - end), "…", ...letters.slice(-end)].join("");
  }

  // ---- One picture ----

  class Pane {
    constructor(figure) {
      this.figure = figure;
      this.canvas = figure.querySelector(".canvas");
      this.picture = data[figure.dataset.net];
      this.opened = new Set(this.picture.closed ? [] : this.picture.chains.keys());
      this.zoom = 0;
      this.rows = new Map(); // the row of each layer
    }

    // Boxes as they are drawn: a chain that is not open is one.
    shownBoxes() {
      const { boxes, arrows, chains } = this.picture;
      const hidden = new Map();
      chains.forEach((chain, index) => {
        if (!this.opened.has(index)) for (const box of chain) hidden.set(box, index);
      });
      const shown = [], place = new Array(boxes.length);
      boxes.forEach((layers, box) => {
        const chain = hidden.get(box);
        if (chain !== undefined && this.picture.chains[chain][0] !== box) return;
        place[box] = shown.length;
        shown.push(chain === undefined ? { layers }
          : { layers: chains[chain].flatMap((each) => boxes[each]), chain });
      });
      chains.forEach((chain, index) => {
        if (!this.opened.has(index)) for (const box of chain) place[box] = place[chain[0]];
      });
      const lines = new Map();
      for (const [from, to] of arrows) {
        const [a, b] = [place[from], place[to]];
        if (a !== b) lines.set(`${a} ${b}`, [a, b]);
      }
      return inOrder(shown, [...lines.values()]);
    }

    draw() {
      const { boxes, arrows } = this.shownBoxes();
      for (const box of boxes) {
        box.width = WIDTH;
        box.height = (box.chain === undefined ? box.layers.length * ROW : 2 * ROW + 2) + 2 * PAD;
      }
      const found = layout(boxes, arrows);
      this.rows.clear();
      const group = svg("g", { id: `${this.figure.dataset.net}-net` });
      for (const points of found.arrows) {
        group.append(svg("path", {
          class: "arrow", d: smooth(points), "marker-end": `url(#head-${this.figure.dataset.net})`,
        }));
      }
      boxes.forEach((box, at) => group.append(this.box(box, found.boxes[at])));
      const margin = 8;
      this.size = {
        x: found.x - margin, y: found.y - margin,
        width: found.width + 2 * margin, height: found.height + 2 * margin,
      };
      this.middle = (found.boxes[0]?.x ?? 0) - this.size.x;
      this.edges = boxes.map((box, at) => [
        found.boxes[at].y - box.height / 2, found.boxes[at].y + box.height / 2,
      ]);
      const { x, y, width, height } = this.size;
      this.svg = svg("svg", {
        viewBox: `${x} ${y} ${width} ${height}`, role: "group",
        "aria-label": `The net ${this.figure.dataset.net} folding`,
      }, svg("defs", {}, svg("marker", {
        id: `head-${this.figure.dataset.net}`, viewBox: "0 0 8 8", refX: 7, refY: 4,
        markerWidth: 7, markerHeight: 7, orient: "auto",
      }, svg("path", { class: "head", d: "M0 .8 7.4 4 0 7.2z" }))), group);
      this.canvas.replaceChildren(this.svg);
      this.scale();
      const first = this.rows.values().next().value;
      if (first) first.setAttribute("tabindex", "0");
      this.choose(chosen);
    }

    scale() {
      if (!this.svg) return;
      const { width, height } = this.size;
      const room = this.canvas.clientWidth - 26;
      const fit = Math.max(Math.min(1, room / width), 0.6);
      const scale = fit * 1.25 ** this.zoom;
      this.svg.setAttribute("width", Math.round(width * scale));
      this.svg.setAttribute("height", Math.round(height * scale));
      this.canvas.scrollLeft = this.middle * scale - room / 2;
    }

    box(box, place) {
      const left = place.x - box.width / 2, top = place.y - box.height / 2;
      const isNoted = box.layers.some((at) => layerOf(at).kind === "stays");
      const made = svg("g", {
        class: `box${isNoted ? " noted" : ""}${box.chain === undefined ? "" : " chain"}`,
        transform: `translate(${left} ${top})`,
      });
      if (box.chain !== undefined) {
        made.append(svg("rect", {
          class: "frame", x: 4, y: 4, width: box.width, height: box.height, rx: 6,
        }));
      }
      made.append(svg("rect", {
        class: "frame", width: box.width, height: box.height, rx: 6,
      }));
      if (box.chain === undefined) {
        box.layers.forEach((at, index) => made.append(this.row(at, PAD + index * ROW)));
      } else {
        made.append(this.chain(box));
      }
      return made;
    }

    row(at, y) {
      const layer = layerOf(at);
      const type = cut(layer.type, 22);
      const says = layer.says ? `, ${layer.says}` : "";
      const made = svg("g", {
        class: `row k-${layer.kind} ${layer.role ?? ""}`, role: "button", tabindex: "-1",
        "data-layer": at, "aria-label": `${layer.name}, ${layer.type}${says}`,
        transform: `translate(0 ${y})`,
      }, svg("rect", { class: "ground", x: 3, width: WIDTH - 6, height: ROW, rx: 3 }));
      const title = svg("title");
      title.textContent = `${layer.name} (${layer.type})`;
      made.append(title);
      if (document.getElementById(`m-${layer.kind}`)) {
        made.append(svg("use", {
          href: `#m-${layer.kind}`, x: 9, y: 4, width: 10, height: 10,
        }));
      }
      const label = svg("text", { class: "label", x: 25, y: 12.5 });
      label.textContent = cut(
        layer.name, Math.floor((WIDTH - 43 - [...type].length * SMALL) / LETTER),
      );
      const kind = svg("text", { class: "kind", x: WIDTH - 10, y: 12.5, "text-anchor": "end" });
      kind.textContent = type;
      made.append(label, kind);
      if (!this.rows.has(at)) this.rows.set(at, made); // an input may be drawn again
      return made;
    }

    // A chain that is not open says what is in it.
    chain(box) {
      const layers = box.layers.map(layerOf);
      const [first, last] = [layers[0], layers[layers.length - 1]];
      const count = (kind) => layers.filter((layer) => layer.kind === kind).length;
      const parts = [`${layers.length} layers in a row`];
      if (count("folds")) parts.push(`${count("folds")} fold`);
      else if (count("takes")) parts.push(`${count("takes")} took others`);
      const made = svg("g", {
        class: `row ${count("folds") ? "k-folds" : count("takes") ? "k-takes" : "k-same"}`,
        role: "button", tabindex: "-1", "data-chain": box.chain, "aria-expanded": "false",
        "aria-label": `${parts.join(", ")}, from ${first.name} to ${last.name}; opens`,
        transform: `translate(0 ${PAD})`,
      }, svg("rect", { class: "ground", x: 3, width: WIDTH - 6, height: 2 * ROW + 2, rx: 3 }));
      const mark = count("folds") ? "folds" : count("takes") ? "takes" : "";
      if (mark) {
        made.append(svg("use", { href: `#m-${mark}`, x: 9, y: 23, width: 10, height: 10 }));
      }
      const names = svg("text", { class: "label", x: 25, y: 13 });
      names.textContent = `${cut(first.name, 16)} … ${cut(last.name, 16)}`;
      const says = svg("text", { class: "kind", x: 25, y: 31 });
      says.textContent = parts.join(", ");
      const plus = svg("text", { class: "kind", x: WIDTH - 10, y: 31, "text-anchor": "end" });
      plus.textContent = "open +";
      made.append(names, says, plus);
      for (const at of box.layers) this.rows.set(at, made);
      return made;
    }

    choose(at) {
      for (const row of this.canvas.querySelectorAll(".chosen")) row.classList.remove("chosen");
      this.rows.get(at)?.classList.add("chosen");
    }

    reveal(at) {
      const row = this.rows.get(at);
      if (!row || !this.canvas.offsetParent) return;
      const [inner, outer] = [row.getBoundingClientRect(), this.canvas.getBoundingClientRect()];
      const isSeen = inner.top >= outer.top && inner.bottom <= outer.bottom;
      if (!isSeen) this.canvas.scrollTop += inner.top - outer.top - outer.height / 2;
    }

    open(chain) {
      const { scrollTop, scrollLeft } = this.canvas;
      const first = this.picture.boxes[this.picture.chains[chain][0]][0];
      this.opened.add(chain);
      this.draw();
      this.canvas.scrollTop = scrollTop;
      this.canvas.scrollLeft = scrollLeft;
      focus(this, this.rows.get(first));
      choose(first);
    }

    // For paper: the picture in pieces below or beside each other, cut where there is a gap.
    slice() {
      if (!this.svg) this.draw();
      const { x, y, width, height } = this.size;
      const scale = Math.min(0.72, 316 / width > 0.5 ? 316 / width : 650 / width);
      const most = 560 / scale;
      const made = html("div", "slices");
      const edges = this.edges.slice().sort((a, b) => a[0] - b[0]);
      let top = y;
      while (top < y + height - 1) {
        let bottom = Math.min(top + most, y + height);
        if (bottom < y + height) {
          const crossed = edges.filter(([above, below]) => above < bottom && below > bottom);
          const above = Math.min(...crossed.map((edge) => edge[0] - 4), bottom);
          if (above > top + most / 2) bottom = above;
        }
        made.append(svg("svg", {
          viewBox: `${x} ${top} ${width} ${bottom - top}`,
          width: Math.round(width * scale), height: Math.round((bottom - top) * scale),
        }, svg("use", { href: `#${this.figure.dataset.net}-net` })));
        top = bottom;
      }
      this.figure.querySelector(".slices")?.remove();
      this.figure.append(made);
    }
  }

  // ---- The chosen layer ----

  const detail = document.querySelector(".detail");
  let chosen = null;

  function choose(at) {
    chosen = at;
    const layer = layerOf(at);
    const parts = [html("h3", "", layer.name), html("p", "type", layer.type)];
    if (layer.says) parts.push(html("p", `says k-${layer.kind}`, layer.says));
    if (layer.facts) {
      const list = html("dl");
      for (const [name, value] of layer.facts) list.append(html("dt", "", name), html("dd", "", value));
      parts.push(list);
    }
    const row = document.getElementById(`int8-${at}`);
    if (row) {
      const link = html("a", "", "Its ranges under int8");
      link.href = `#int8-${at}`;
      parts.push(link);
    }
    detail.replaceChildren(...parts);
    for (const pane of panes.values()) {
      pane.choose(at);
      pane.reveal(at);
    }
  }

  function focus(pane, row) {
    if (!row) return;
    for (const other of pane.canvas.querySelectorAll('[tabindex="0"]')) {
      other.setAttribute("tabindex", "-1");
    }
    row.setAttribute("tabindex", "0");
    row.focus({ preventScroll: false });
  }

  function act(pane, row) {
    if (row.dataset.chain !== undefined) pane.open(Number(row.dataset.chain));
    else choose(Number(row.dataset.layer));
  }

  function listen(pane) {
    pane.canvas.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (!row) return;
      focus(pane, row);
      act(pane, row);
      if (matchMedia("(max-width: 760px)").matches) detail.scrollIntoView({ block: "nearest" });
    });
    pane.canvas.addEventListener("keydown", (event) => {
      const row = event.target.closest(".row");
      if (!row) return;
      const rows = [...pane.canvas.querySelectorAll(".row")];
      const at = rows.indexOf(row);
      const next = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
      if (event.key === "Enter" || event.key === " ") act(pane, row);
      else if (next !== undefined) focus(pane, rows[Math.min(Math.max(next, 0), rows.length - 1)]);
      else return;
      event.preventDefault();
    });
  }

  // ---- The tools ----

  function drawShown() {
    for (const pane of panes.values()) {
      if (!pane.svg && pane.canvas.offsetParent) pane.draw();
    }
  }

  for (const figure of document.querySelectorAll(".pane")) {
    const pane = new Pane(figure);
    panes.set(figure.dataset.net, pane);
    listen(pane);
  }

  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => {
      net.dataset.shown = button.dataset.show;
      for (const other of document.querySelectorAll("[data-show]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      drawShown();
    });
  }

  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      for (const pane of panes.values()) {
        pane.zoom = Math.max(-6, Math.min(4, pane.zoom + (button.dataset.zoom === "in" ? 1 : -1)));
        pane.scale();
      }
    });
  }

  const all = document.querySelector("[data-chains]");
  const word = (isOpen) => { all.textContent = `${isOpen ? "Close" : "Open"} all chains`; };
  let isOpen = ![...panes.values()].some((pane) => pane.picture.closed);
  word(isOpen);
  all.hidden = ![...panes.values()].some((pane) => pane.picture.chains.length);
  all.addEventListener("click", () => {
    isOpen = !isOpen;
    word(isOpen);
    for (const pane of panes.values()) {
      pane.opened = new Set(isOpen ? pane.picture.chains.keys() : []);
      if (pane.svg) pane.draw();
    }
  });

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open]):not(.screen)")];
    for (const details of closed) details.open = true;
    for (const pane of panes.values()) pane.slice();
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
    for (const slices of document.querySelectorAll(".slices")) slices.remove();
  });
  addEventListener("resize", () => {
    drawShown();
    for (const pane of panes.values()) pane.scale();
  });

  // One net is seen at once; the other follows as soon as that is painted.
  const [shown, ...others] = panes.values();
  shown.draw();
  requestAnimationFrame(() => setTimeout(() => {
    if (others.length) drawShown();
    document.documentElement.dataset.ready = "yes";
  }));
})();
