"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const viewer = document.getElementById("viewer");
  const text = document.getElementById("text");
  const panel = document.getElementById("panel");
  const map = document.getElementById("map");
  const lines = Array.from(text.children);
  const parts = []; // the spans of each token: more than one where it runs over a line end
  const lineOf = [];
  lines.forEach((line, number) => {
    for (const span of line.children) {
      if (!span.classList.contains("c")) { parts.push([]); lineOf.push(number); }
      parts[parts.length - 1].push(span);
      span.token = parts.length - 1;
    }
  });
  const peek = (i) => data.tokens[i] === undefined ? parts[i].map((s) => s.textContent).join("") : data.tokens[i];
  const percent = (share) => (100 * share).toFixed(share < 0.1 ? 1 : 0) + " %";
  const bits = (i, of) => of[i] === null ? "" : (of[i] / 100).toFixed(2);
  let at = -1, pinned = false, marked = [];

  function element(tag, className, content) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (content !== undefined) made.textContent = content;
    return made;
  }

  function shown(token) {
    const seen = token.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/^ +| +$/g, (s) => "\u00b7".repeat(s.length));
    return seen || "(no text of its own)";
  }

  // A long line is cut to some tokens around the first that stands out.
  function excerpt(number, peaks) {
    const code = element("code");
    const spans = Array.from(lines[number].children);
    const first = Math.max(0, spans.findIndex((span) => peaks.includes(span.token)) - 24);
    const from = spans.length > 56 ? first : 0, to = Math.min(spans.length, from + 56);
    if (from > 0) code.append("\u2026 ");
    for (const span of spans.slice(from, to)) {
      let content = span.textContent;
      if (!code.childNodes.length) content = content.replace(/^[ \t]+/, "");
      if (content) code.append(peaks.includes(span.token) ? element("mark", "", content) : content);
    }
    if (to < spans.length) code.append(" \u2026");
    return code;
  }

  function describe(i) {
    const passages = data.passages[i];
    const head = element("div");
    head.append(element("span", "token", shown(peek(i))));
    const where = element("div", "where", "token " + (i + 1).toLocaleString("en") + " \u00b7 line " + (lineOf[i] + 1).toLocaleString("en"));
    const facts = element("dl");
    const rows = [["memory mass", percent(data.mass[i] / 1000)]];
    if (bits(i, data.memory)) rows.push(["bits, with the memory", bits(i, data.memory)], ["bits, with the window alone", bits(i, data.window)]);
    for (const [name, value] of rows) facts.append(element("dt", "", name), element("dd", "", value));
    panel.replaceChildren(head, where, facts, element("h3", "", "Retrieved to predict it"));
    if (!passages.length) {
      panel.append(element("p", "none", data.mass[i] ? "Nothing beyond the entries that every token rests on." : "Nothing: all of the text so far is in the window."));
      return;
    }
    const list = element("ol");
    const most = passages[0][1];
    for (const [line, weight, peaks] of passages) {
      const item = element("li"), button = element("button"), label = element("small"), bar = element("i");
      button.type = "button";
      label.append(element("span", "", "line " + (line + 1).toLocaleString("en")), element("span", "", (weight / 100).toFixed(weight < 1000 ? 2 : 1) + " % of attention"));
      bar.style.width = (100 * weight / most) + "%";
      button.append(label, bar, excerpt(line, peaks));
      button.addEventListener("click", () => { pinned = true; center(line); });
      item.append(button);
      list.append(item);
    }
    panel.append(list);
  }

  // Only the text scrolls, never the page around it.
  function center(line) {
    text.scrollTop = lines[line].offsetTop - text.clientHeight / 2;
  }
  function reveal(line) {
    const top = lines[line].offsetTop, height = lines[line].offsetHeight;
    if (top < text.scrollTop || top + height > text.scrollTop + text.clientHeight) center(line);
  }

  function select(i, follow) {
    if (i < 0 || i >= parts.length) return;
    for (const [node, name] of marked) node.classList.remove(name);
    marked = [];
    at = i;
    const mark = (node, name) => { node.classList.add(name); marked.push([node, name]); };
    parts[i].forEach((span) => mark(span, "at"));
    for (const [line, , peaks] of data.passages[i]) {
      mark(lines[line], "from");
      peaks.forEach((peak) => parts[peak].forEach((span) => mark(span, "peak")));
    }
    describe(i);
    draw();
    if (follow) reveal(lineOf[i]);
  }

  function tokenUnder(event) {
    return event.target.token === undefined ? -1 : event.target.token;
  }
  text.addEventListener("mouseover", (event) => { if (!pinned) select(tokenUnder(event)); });
  text.addEventListener("click", (event) => {
    const i = tokenUnder(event);
    if (i < 0) { pinned = false; return; }
    pinned = !(pinned && i === at);
    select(i);
  });

  function step(by) {
    let i = at;
    do i += by; while (i >= 0 && i < parts.length && !parts[i].some((span) => span.textContent || span.classList.contains("n")));
    return i;
  }
  function lineStep(by) {
    for (let line = lineOf[at] + by; line >= 0 && line < lines.length; line += by) {
      const there = lines[line].firstElementChild;
      if (there) return there.token;
    }
    return at;
  }
  text.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => lineStep(-1), ArrowDown: () => lineStep(1) };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (moves[event.key]) { pinned = true; select(moves[event.key](), true); }
    else if (event.key === "Enter" || event.key === " ") pinned = !pinned;
    else if (event.key === "Escape") pinned = false;
    else return;
    event.preventDefault();
  });

  // The map: the whole text, tinted alike, with the passages of the token marked and what is in view boxed.
  const context = map.getContext("2d");
  function draw() {
    const ratio = window.devicePixelRatio || 1, width = map.clientWidth, height = map.clientHeight;
    if (!width || !height) return;
    map.width = width * ratio; map.height = height * ratio;
    context.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const color = (name, alpha) => "rgb(" + style.getPropertyValue(name).trim() + " / " + alpha + ")";
    const whole = text.scrollHeight, y = (line) => lines[line].offsetTop / whole * height;
    const tall = Math.max(1, height / lines.length * 0.8), wide = (width - 12) / 100;
    const [of, low, top] = viewer.dataset.tint === "mass" ? [data.mass, data.mass_low, data.mass_top] : [data.gain, 0, data.gain_top];
    lines.forEach((line, number) => {
      let x = 6;
      const row = y(number);
      for (const span of line.children) {
        const long = span.textContent.length * wide;
        if (span.textContent.trim()) {
          const share = Math.min(1, Math.max(0, (of[span.token] - low) / (top - low)));
          context.fillStyle = share > 0.04 ? color("--memory", 0.12 + 0.8 * share) : style.getPropertyValue("--rule");
          context.fillRect(x, row, Math.min(long, width - 6 - x), tall);
        }
        x += long;
        if (x > width - 6) break;
      }
    });
    if (at >= 0) {
      const most = data.passages[at].length ? data.passages[at][0][1] : 1;
      for (const [line, weight] of data.passages[at]) {
        context.fillStyle = color("--source", 0.35 + 0.65 * weight / most);
        context.fillRect(0, y(line) - 1, width, Math.max(3, tall));
      }
      context.fillStyle = style.getPropertyValue("--ink");
      context.fillRect(0, y(lineOf[at]) - 1, width, 2.5);
    }
    context.strokeStyle = style.getPropertyValue("--faint");
    context.strokeRect(1, text.scrollTop / whole * height + 0.5, width - 2, text.clientHeight / whole * height - 1);
  }
  function toMap(event) {
    const there = event.offsetY / map.clientHeight * text.scrollHeight;
    text.scrollTop = there - text.clientHeight / 2;
  }
  map.addEventListener("pointerdown", (event) => { map.setPointerCapture(event.pointerId); toMap(event); });
  map.addEventListener("pointermove", (event) => { if (event.buttons) toMap(event); });
  text.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  new ResizeObserver(draw).observe(map.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  for (const input of document.getElementsByName("tint")) {
    input.addEventListener("change", () => { viewer.dataset.tint = input.value; draw(); });
  }

  const examples = document.getElementById("examples");
  for (const i of data.examples) {
    const button = element("button");
    button.type = "button";
    button.append(element("code", "", shown(peek(i))), " line " + (lineOf[i] + 1));
    button.addEventListener("click", () => { pinned = true; select(i); center(lineOf[i]); });
    examples.append(button);
  }
  examples.hidden = !data.examples.length;
  select(data.examples.length ? data.examples[0] : 0);
  center(lineOf[at]);
})();
