
"use strict";
// Makes the table sort and filter, and draws the plot. Data becomes text nodes only, never markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  // Controls follow the models: what is no model of the table has a number from here on.
  const CONTROLS = data.rows.length;
  const everything = [...data.rows, ...data.controls];

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function drawn(name, attributes, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  for (const part of document.querySelectorAll(".js")) part.hidden = false;

  // ------------------------------------------------------------------ families: colour and shape

  // Paths of about equal area around (0, 0).
  const SHAPES = [
    "M-1 0A1 1 0 1 1 1 0A1 1 0 1 1 -1 0Z",
    "M-.89-.89H.89V.89H-.89Z",
    "M0-1.3L1.2.8H-1.2Z",
    "M0-1.3L1.15 0L0 1.3L-1.15 0Z",
    "M0 1.3L1.2-.8H-1.2Z",
    "M-.4-1.15H.4V-.4H1.15V.4H.4V1.15H-.4V.4H-1.15V-.4H-.4Z",
    "M-.53-1.1L0-.57L.53-1.1L1.1-.53L.57 0L1.1.53L.53 1.1L0 .57L-.53 1.1L-1.1.53L-.57 0L-1.1-.53Z",
    "M-1.3 0L.8-1.2V1.2Z",
  ];
  const STAR = "M0-1.35L.4-.45L1.3-.4L.6.2L.82 1.1L0 .6L-.82 1.1L-.6.2L-1.3-.4L-.4-.45Z";
  const COLOURS = 7;
  const colour = (family) => (family < 0 ? "unstated" : `c${family % COLOURS}`);
  const shape = (family) => (family < 0 ? STAR : SHAPES[family % SHAPES.length]);

  function swatch(family) {
    const glyph = drawn("path", { class: "glyph", d: shape(family) });
    return drawn("svg", { viewBox: "-1.5 -1.5 3 3", class: colour(family), "aria-hidden": "true" },
      glyph);
  }

  // ------------------------------------------------------------------ what is shown

  const filter = { text: "", family: "", kind: "", least: null, most: null, hidden: new Set() };
  let selected = -1;

  function passes(row) {
    return (
      filter.text.split(/\s+/).every((word) => row.search.includes(word)) &&
      (filter.family === "" || String(row.family) === filter.family) &&
      (filter.kind === "" || row.kind === filter.kind) &&
      (filter.least === null || (row.parameters !== null && row.parameters >= filter.least)) &&
      (filter.most === null || (row.parameters !== null && row.parameters <= filter.most)) &&
      !filter.hidden.has(row.family)
    );
  }

  // Controls are there to hold models against, whichever of them are shown.
  const isShown = (row) => row >= CONTROLS || passes(data.rows[row]);

  // A date is a number of milliseconds on an axis, and in a comparison.
  function value(row, field) {
    const found = everything[row].values[field];
    return found !== null && data.fields[field].kind === "date" ? Date.parse(found) : found;
  }

  // ------------------------------------------------------------------ the table

  const table = $("table");
  const body = table.tBodies[0];
  const rows = [];
  for (const row of body.rows) rows[Number(row.dataset.row)] = row;
  const headings = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator("en", { numeric: true });

  function sort(field, direction) {
    const sign = direction === "ascending" ? 1 : -1;
    const order = data.rows.map((_, row) => row);
    order.sort((a, b) => {
      const u = value(a, field);
      const v = value(b, field);
      if (u === null || v === null) return (u === null) - (v === null) || a - b;
      return sign * (typeof u === "string" ? collator.compare(u, v) : u - v) || a - b;
    });
    body.append(...order.map((row) => rows[row]));
    headings.forEach((heading, place) => {
      if (place === field) heading.setAttribute("aria-sort", direction);
      else heading.removeAttribute("aria-sort");
    });
  }

  headings.forEach((heading, field) => {
    const label = heading.querySelector(".label");
    const button = element("button", { type: "button" }, label.textContent);
    button.addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      const other = now === "ascending" ? "descending" : "ascending";
      sort(field, now ? other : data.fields[field].first);
    });
    label.replaceWith(button);
  });

  rows.forEach((row, index) => {
    const { name, family } = data.rows[index];
    const button = element("button",
      { type: "button", class: "swatch", "aria-label": `Show ${name} in the plot`,
        "aria-pressed": "false" },
      swatch(family));
    row.cells[0].querySelector(".named").prepend(button);
    row.addEventListener("click", (event) => {
      if (event.target.closest("a") || String(getSelection())) return;
      select(selected === index ? -1 : index);
      if (selected === index && event.target.closest("button")) {
        $("plot").scrollIntoView({ block: "nearest" });
        const mark = shownMarks().find((each) => each.row === index);
        if (mark) focusOn(mark);
      }
    });
    row.addEventListener("pointerenter", () => near(index));
    row.addEventListener("pointerleave", rest);
  });

  // ------------------------------------------------------------------ the plot

  const plot = $("plot");
  const tooltip = $("tooltip");
  const axes = { x: data.x, y: data.y };
  let marks = []; // of models and controls with both scores: {row, x, y, node}, from left to right
  let picture = null;
  let pointed = -1;

  function amount(v) {
    const [unit, sign] = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]]
      .find(([each]) => v >= each * 0.9995) || [1, ""];
    return `${Number((v / unit).toPrecision(3))}${sign}`;
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((each) => each * power >= rough * 0.999) * power;
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) {
      found.push([i * step, (i * step).toFixed(digits)]);
    }
    return found;
  }

  function logTicks(low, high, count) {
    const decades = high - low;
    const steps = decades < count / 3 ? [1, 2, 5] : decades < count / 2 ? [1, 3] : [1];
    const found = [];
    for (let power = Math.floor(low); power <= high; power += 1) {
      for (const step of steps) {
        const at = Math.log10(step) + power;
        if (at >= low && at <= high) found.push([at, amount(step * 10 ** power)]);
      }
    }
    if (found.length > 1) return found;
    return ticks(low, high, count).map(([at]) => [at, amount(10 ** at)]);
  }

  function dateTicks(low, high, count) {
    const months = (time) => {
      const date = new Date(time);
      return date.getUTCFullYear() * 12 + date.getUTCMonth();
    };
    const span = (months(high) - months(low)) / count;
    const step = [1, 3, 6, 12, 24, 60].find((each) => each >= span) || 120;
    const found = [];
    for (let m = Math.ceil(months(low) / step) * step; m <= months(high) + step; m += step) {
      const at = Date.UTC(Math.floor(m / 12), m % 12);
      const label = step % 12 ? new Date(at).toISOString().slice(0, 7) : String(m / 12);
      if (at >= low && at <= high) found.push([at, label]);
    }
    return found;
  }

  const transformed = (field) => (data.fields[field].log ? Math.log10 : (v) => v);

  // The least and the greatest of a field with its errors, as they are on its axis.
  function extent(field, drawnRows) {
    const { log } = data.fields[field];
    const ends = drawnRows.flatMap((row) => {
      const error = log ? 0 : everything[row].errors[field] || 0;
      return [value(row, field) - error, value(row, field) + error].map(transformed(field));
    });
    return [Math.min(...ends), Math.max(...ends)];
  }

  // Whether a value is at most so many spans of the models away from them.
  function isNear(v, field, both, spans) {
    const [low, high] = extent(field, both);
    const reach = spans * (high - low);
    const at = transformed(field)(v);
    return at >= low - reach && at <= high + reach;
  }

  // From a field to positions in pixels, over all models that have both scores, shown or not, so
  // that a filter moves nothing; wide enough for the controls and the levels near them.
  function scale(field, both, controls, from, to, count) {
    const { log, kind } = data.fields[field];
    const transform = transformed(field);
    const levels = data.fields[field].levels.filter(([v]) => isNear(v, field, both, 1 / 3));
    const ends = [...extent(field, [...both, ...controls]), ...levels.map(([v]) => transform(v))];
    let low = Math.min(...ends);
    let high = Math.max(...ends);
    const pad = (high - low) * 0.06 || (kind === "date" ? 1e10 : log ? 0.3 : Math.abs(high) * 0.1 || 1);
    low -= pad;
    high += pad;
    const at = (v) => from + ((transform(v) - low) / (high - low)) * (to - from);
    const marked = (kind === "date" ? dateTicks : log ? logTicks : ticks)(low, high, count)
      .map(([where, label]) => [from + ((where - low) / (high - low)) * (to - from), label]);
    return { at, ticks: marked, levels };
  }

  function radius(row, sizes) {
    const size = everything[row].parameters;
    if (size === null || sizes.length < 2) return 6;
    const [low, high] = [Math.log(Math.min(...sizes)), Math.log(Math.max(...sizes))];
    return 4.5 + 6 * ((Math.log(size) - low) / (high - low || 1));
  }

  function draw() {
    const focused = marks.find((mark) => mark.node === document.activeElement);
    near(-1);
    if (picture) picture.remove();
    marks = [];
    picture = null;
    const scored = [...everything.keys()]
      .filter((row) => value(row, axes.x) !== null && value(row, axes.y) !== null);
    const both = scored.filter((row) => row < CONTROLS);
    // A control may take half of the plot, but no more.
    const controls = scored.filter((row) => row >= CONTROLS && both.length > 0 &&
      [axes.x, axes.y].every((field) => isNear(value(row, field), field, both, 1)));
    const far = scored.filter((row) => row >= CONTROLS && !controls.includes(row));
    $("nothing").hidden = both.length > 0;
    $("references").textContent = "";
    const width = plot.clientWidth;
    if (!both.length || !width) return;

    const height = Math.round(Math.min(560, Math.max(320, width * 0.58)));
    picture = drawn("svg", { height, viewBox: `0 0 ${width} ${height}` });
    plot.prepend(picture);
    const across = wrapped(`${data.fields[axes.x].label}\u00a0→`, width - 16);
    const upward = wrapped(`↑\u00a0${data.fields[axes.y].label}`, width - 16);
    const [left, right] = [56, width - 16];
    const [top, bottom] = [10 + LINE * upward.length, height - 34 - LINE * across.length];
    const x = scale(axes.x, both, controls, left, right, Math.max(4, Math.min(8, (right - left) / 90)));
    const y = scale(axes.y, both, controls, bottom, top, Math.max(3, Math.min(7, (bottom - top) / 55)));
    const behind = drawn("g", { "aria-hidden": "true" });
    const line = (kind, x1, y1, x2, y2) => drawn("line", { class: kind, x1, y1, x2, y2 });
    const words = (text, attributes) => drawn("text", attributes, text);
    for (const [at, label] of x.ticks) {
      behind.append(line("grid", at, top, at, bottom),
        words(label, { x: at, y: bottom + 20, "text-anchor": "middle" }));
    }
    for (const [at, label] of y.ticks) {
      behind.append(line("grid", left, at, right, at),
        words(label, { x: left - 8, y: at + 4, "text-anchor": "end" }));
    }
    for (const [v, label] of x.levels) {
      behind.append(line("level", x.at(v), top, x.at(v), bottom),
        words(label, { class: "level-name", x: x.at(v) + 4, y: top + 12 }));
    }
    for (const [v, label] of y.levels) {
      behind.append(line("level", left, y.at(v), right, y.at(v)),
        words(label, { class: "level-name", x: right - 4, y: y.at(v) - 4, "text-anchor": "end" }));
    }
    behind.append(
      line("frame", left, bottom, right, bottom), line("frame", left, top, left, bottom),
      lines(across, { class: "axis", x: right, y: bottom + 26 + LINE, "text-anchor": "end" }),
      lines(upward, { class: "axis", x: 0, y: 14 }),
    );
    $("references").textContent = references([...x.levels, ...y.levels], controls, far);

    const points = [...both, ...controls];
    const sizes = points.map((row) => everything[row].parameters).filter((size) => size !== null);
    const label = `Models: ${data.fields[axes.x].label} and ${data.fields[axes.y].label}`;
    const list = drawn("g", { role: "listbox", "aria-label": label });
    marks = points.map((row) => {
      const { name, family, errors } = everything[row];
      const [cx, cy, r] = [x.at(value(row, axes.x)), y.at(value(row, axes.y)), radius(row, sizes)];
      const node = drawn("g", {
        class: row < CONTROLS ? `mark ${colour(family)}` : "mark control", role: "option", tabindex: "-1", "data-row": row,
        "aria-selected": String(row === selected),
        "aria-label": [name, ...numbers(row).map((pair) => pair.join(" "))].join(", "),
      });
      const [ex, ey] = [axes.x, axes.y].map((field) => (data.fields[field].log ? 0 : errors[field]));
      if (ex) {
        const [a, b] = [-ex, ex].map((e) => x.at(value(row, axes.x) + e));
        node.append(line("error", a, cy, b, cy));
      }
      if (ey) {
        const [a, b] = [-ey, ey].map((e) => y.at(value(row, axes.y) + e));
        node.append(line("error", cx, a, cx, b));
      }
      node.append(
        drawn("path", { class: "glyph", d: row < CONTROLS ? shape(family) : SHAPES[0], transform: `translate(${cx} ${cy}) scale(${r})` }),
        drawn("circle", { class: "ring", cx, cy, r: r + 5 }),
      );
      node.addEventListener("focus", () => show(row));
      node.addEventListener("blur", () => near(-1));
      return { row, x: cx, y: cy, r, node };
    });
    // Large marks first, so that they hide no small one.
    list.append(...[...marks].sort((a, b) => b.r - a.r).map((mark) => mark.node));
    marks.sort((a, b) => a.x - b.x || a.row - b.row);
    picture.append(behind, list);
    picture.addEventListener("pointermove", (event) => {
      const row = closest(event);
      if (row < 0) rest();
      else show(row);
    });
    picture.addEventListener("pointerleave", rest);
    picture.addEventListener("click", (event) => {
      const row = closest(event);
      if (row < 0) return;
      select(selected === row ? -1 : row);
      show(row);
    });
    list.addEventListener("keydown", keys);
    refresh();
    if (focused) marks.find((mark) => mark.row === focused.row)?.node.focus();
  }

  const LINE = 18; // pixels from one line of an axis' name to the next

  // The name of an axis in up to three lines; what is wider still is cut.
  function wrapped(name, most) {
    const text = picture.appendChild(drawn("text", { class: "axis" }));
    const fits = (words) => {
      text.textContent = words;
      return text.getComputedTextLength() <= most;
    };
    const found = [];
    for (const word of name.split(" ")) {
      const longer = found.length ? `${found[found.length - 1]} ${word}` : word;
      if (found.length && (found.length === 3 || fits(longer))) found[found.length - 1] = longer;
      else found.push(word);
    }
    const cut = found.map((line) => {
      let n = line.length;
      while (n > 1 && !fits(n < line.length ? `${line.slice(0, n)}…` : line)) n -= 1;
      return n < line.length ? `${line.slice(0, n)}…` : line;
    });
    text.remove();
    return cut;
  }

  function lines(texts, attributes) {
    return drawn("text", attributes, ...texts.map((text, at) =>
      drawn("tspan", { x: attributes.x, dy: at ? LINE : 0 }, text)));
  }

  // What the caption says of the things in the plot that are no models.
  function references(levels, controls, far) {
    const said = { chance: "chance", "shared words": "the captions’ words alone" };
    const found = [...new Set(levels.map(([, name]) => said[name]))];
    const sentences = [];
    if (found.length) {
      const lead = levels.length === 1 ? "The dashed line is" : "Dashed lines are";
      sentences.push(`${lead} what ${found.join(" or ")} would score.`);
    }
    if (controls.length) sentences.push("Hollow grey marks are controls.");
    const names = far.map((row) => everything[row].name).join(", ");
    if (names) sentences.push(`Controls too far off to be drawn: ${names}.`);
    return sentences.join(" ");
  }

  const shownMarks = () => marks.filter((mark) => isShown(mark.row));

  // The shown mark nearest to a pointer, within a finger's width, or -1.
  function closest(event) {
    const box = picture.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let [found, least] = [-1, 24];
    for (const { row, x, y } of shownMarks()) {
      const distance = Math.hypot(x - px, y - py);
      if (distance < least) [found, least] = [row, distance];
    }
    return found;
  }

  function numbers(row) {
    const { shown, values } = everything[row];
    return [...new Set([axes.x, axes.y, data.parameters])]
      .filter((field) => values[field] !== null)
      .map((field) => [data.fields[field].label, shown[field]]);
  }

  // Brings out a model in the table and the plot.
  function near(row) {
    rows.forEach((each, index) => each.classList.toggle("near", index === row));
    for (const mark of marks) mark.node.classList.toggle("near", mark.row === row);
    if (row < 0) tooltip.hidden = true;
    pointed = row;
  }

  function show(row) {
    if (row === pointed && !tooltip.hidden) return;
    near(row);
    const mark = shownMarks().find((each) => each.row === row);
    tooltip.hidden = !mark;
    if (!mark) return;
    const { name, family, control } = everything[row];
    const pairs = numbers(row).flatMap(([label, text]) => [
      element("dt", {}, label), element("dd", {}, text)]);
    tooltip.replaceChildren(
      element("strong", {}, name),
      element("span", {}, control || (family < 0 ? "family not stated" : data.families[family])),
      element("dl", {}, ...pairs),
    );
    const { offsetWidth: wide, offsetHeight: tall } = tooltip;
    const beside = mark.x + wide + 18 > plot.clientWidth ? mark.x - wide - 14 : mark.x + 14;
    tooltip.style.left = `${Math.max(0, Math.min(beside, plot.clientWidth - wide))}px`;
    tooltip.style.top = `${mark.y > tall + 14 ? mark.y - tall - 10 : mark.y + 14}px`;
  }

  // Where nothing is pointed at, the mark that has the focus keeps its tooltip.
  function rest() {
    const focused = marks.find((mark) => mark.node === document.activeElement);
    if (focused) show(focused.row);
    else near(-1);
  }

  function keys(event) {
    const here = shownMarks();
    const at = here.findIndex((mark) => mark.node === document.activeElement);
    if (at < 0) return;
    const up = [...here].sort((a, b) => b.y - a.y || a.row - b.row);
    const level = up.indexOf(here[at]);
    const next = {
      ArrowLeft: here[at - 1], ArrowRight: here[at + 1], ArrowDown: up[level - 1],
      ArrowUp: up[level + 1], Home: here[0], End: here[here.length - 1],
    };
    if (event.key in next) {
      if (next[event.key]) focusOn(next[event.key]);
    } else if (event.key === "Enter" || event.key === " ") {
      select(selected === here[at].row ? -1 : here[at].row);
    } else return;
    event.preventDefault();
  }

  function focusOn(mark) {
    for (const each of marks) each.node.setAttribute("tabindex", each === mark ? "0" : "-1");
    mark.node.focus();
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") near(-1);
  });

  function select(row) {
    if (row >= CONTROLS) return;
    selected = row;
    for (const mark of marks) mark.node.setAttribute("aria-selected", String(mark.row === row));
    rows.forEach((each, index) => {
      each.classList.toggle("selected", index === row);
      each.querySelector(".swatch").setAttribute("aria-pressed", String(index === row));
    });
    if (row < 0) return;
    const box = table.parentElement;
    const at = rows[row].offsetTop;
    const head = table.tHead.offsetHeight;
    if (at < box.scrollTop + head || at + rows[row].offsetHeight > box.scrollTop + box.clientHeight) {
      box.scrollTop = at - head - 8;
    }
  }

  // ------------------------------------------------------------------ filters and legend

  // Everything that depends on which models are shown.
  function refresh() {
    let count = 0;
    data.rows.forEach((row, index) => {
      const pass = passes(row);
      rows[index].hidden = !pass;
      count += pass;
    });
    const all = data.rows.length;
    const unread = ["least", "most"].some((id) => $(id).hasAttribute("aria-invalid"));
    $("count").textContent = `${count} of ${all} ${all === 1 ? "model" : "models"} shown` +
      (unread ? "; parameters are a number, as 100K, 1.4B or 1e9" : "");
    for (const mark of marks) mark.node.toggleAttribute("hidden", !isShown(mark.row));
    const here = shownMarks();
    if (!here.some((mark) => mark.node.getAttribute("tabindex") === "0")) {
      for (const mark of marks) {
        mark.node.setAttribute("tabindex", mark === here[0] ? "0" : "-1");
      }
    }
    if (pointed >= 0 && !isShown(pointed)) near(-1);
    const pair = data.pairs.find(([a, b]) =>
      (a === axes.x && b === axes.y) || (a === axes.y && b === axes.x));
    const text = pair ? pair[2] : "No statistic was made for this pair of columns.";
    $("statistic").textContent =
      pair && count < all ? `Of all models, not only those shown: ${text}` : text;
  }

  function choose(id, set) {
    const happened = $(id).tagName === "SELECT" ? "change" : "input";
    $(id).addEventListener(happened, (event) => {
      set(event.target.value);
      refresh();
    });
  }

  // 100K, 1.4B, 1e9 or 1,000,000; null where a text is none of them.
  function parameters(text) {
    const plain = text.trim().replace(/,(?=\d{3}(?!\d))/g, "");
    const found = /^((?:\d+\.?\d*|\.\d+)(?:e\+?\d+)?)\s*([kmbt]?)$/i.exec(plain);
    const unit = found && { "": 1, k: 1e3, m: 1e6, b: 1e9, t: 1e12 }[found[2].toLowerCase()];
    return found && Number.isFinite(found[1] * unit) ? found[1] * unit : null;
  }

  function chooseBound(id, end) {
    const known = data.rows.map((row) => row.parameters).filter((size) => size !== null);
    if (known.length) $(id).placeholder = `e.g. ${amount(end(...known))}`;
    choose(id, (text) => {
      filter[id] = parameters(text);
      if (text.trim() && filter[id] === null) $(id).setAttribute("aria-invalid", "true");
      else $(id).removeAttribute("aria-invalid");
    });
  }

  choose("text", (text) => { filter.text = text.trim().toLowerCase(); });
  choose("family", (text) => { filter.family = text; });
  choose("kind", (text) => { filter.kind = text; });
  chooseBound("least", Math.min);
  chooseBound("most", Math.max);

  const unstated = data.rows.some((row) => row.family < 0);
  const named = [...data.families.entries(), ...(unstated ? [[-1, "not stated"]] : [])];
  const toggles = named.map(([family, name]) => {
    $("family").append(element("option", { value: family }, name));
    const button = element("button", { type: "button", "aria-pressed": "true" },
      swatch(family), name);
    button.addEventListener("click", () => {
      const hide = !filter.hidden.has(family);
      if (hide) filter.hidden.add(family);
      else filter.hidden.delete(family);
      button.setAttribute("aria-pressed", String(!hide));
      refresh();
    });
    $("legend").append(element("li", {}, button));
    return button;
  });

  $("reset").addEventListener("click", () => {
    Object.assign(filter, { text: "", family: "", kind: "", least: null, most: null });
    filter.hidden.clear();
    for (const id of ["text", "family", "kind", "least", "most"]) {
      $(id).value = "";
      $(id).removeAttribute("aria-invalid");
    }
    for (const button of toggles) button.setAttribute("aria-pressed", "true");
    refresh();
  });

  for (const axis of ["x", "y"]) {
    data.fields.forEach((field, index) => {
      if (field.axis) $(axis).append(element("option", { value: index }, field.label));
    });
    $(axis).value = String(axes[axis]);
    $(axis).addEventListener("change", (event) => {
      axes[axis] = Number(event.target.value);
      draw();
      refresh();
    });
  }

  // ------------------------------------------------------------------ light and dark

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const theme = $("theme");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const tell = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  dark.addEventListener("change", tell);
  tell();

  let drawnWidth = 0;
  new ResizeObserver(() => {
    if (plot.clientWidth === drawnWidth) return;
    drawnWidth = plot.clientWidth;
    draw();
  }).observe(plot);
  draw();
  refresh();
})();
