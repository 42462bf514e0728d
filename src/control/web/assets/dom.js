// Elements are made here and nowhere else: children that are strings become text, never markup.

/** An element. `attributes`: `class`, `onclick`, `hidden`, …; `children`: elements, strings, numbers, lists, null. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element;
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : document.createTextNode(String(child))));
}

/** Replaces what is in `element`, but leaves the reader's place, and what he has typed or opened, alone. */
export function fill(element, ...children) {
  const focused = document.activeElement?.id;
  element.replaceChildren(...flat(children));
  if (focused && element.querySelector(`#${CSS.escape(focused)}`)) document.getElementById(focused).focus();
}

/** A table. `heads`: text, or [text, class]; `rows`: lists of cells, each a child or [child, class]; or ready `tr`. */
export function table(heads, rows, empty) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  const cell = (tag, of) => (Array.isArray(of) ? h(tag, { class: of[1], scope: tag === "th" ? "col" : null }, of[0]) : h(tag, { scope: tag === "th" ? "col" : null }, of));
  const row = (of) => {
    const made = of instanceof Node ? of : h("tr", {}, of.map((c) => cell("td", c)));
    // A narrow window shows each row as a card, and each cell with its head.
    if (made.children.length === heads.length) {
      heads.forEach((head, n) => made.children[n].setAttribute("data-head", Array.isArray(head) ? head[0] : head));
    }
    return made;
  };
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((c) => cell("th", c)))),
    h("tbody", {}, rows.map(row))));
}

/** A row that leads to `href`; its first link is for keyboards. */
export function linked(href, cells, attributes = {}) {
  const open = (event) => {
    if (event.target.closest("a, button") || getSelection().toString()) return;
    location.hash = href;
  };
  return h("tr", { class: "link", onclick: open, ...attributes }, cells.map((c) => (Array.isArray(c) ? h("td", { class: c[1] }, c[0]) : h("td", {}, c))));
}

/** Parts of a whole, as [share, tone]. Widths are set by script: the page's policy has no inline styles. */
export function bar(parts, label, big = false) {
  const made = h("div", { class: big ? "bar big" : "bar", role: "img", "aria-label": label, title: label });
  for (const [share, tone] of parts) {
    const part = h("i", { class: tone });
    part.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
    made.append(part);
  }
  return made;
}

export function facts(rows) {
  return h("dl", {}, rows.filter(Boolean).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

/** Says something for a while. */
export function toast(text, tone = "") {
  const made = h("div", { class: `toast ${tone}` }, text);
  document.getElementById("toasts").append(made);
  setTimeout(() => made.remove(), tone === "bad" ? 12000 : 5000);
}

/** Asks before something is done. Resolves to the comment (maybe empty), or to null. */
export function ask({ title, text, button, danger = false, comment = false }) {
  const dialog = document.getElementById("ask");
  return new Promise((resolve) => {
    const words = h("textarea", { id: "ask-comment", maxlength: 4096 });
    let answer = null;
    const form = h("form", { method: "dialog", onsubmit: () => { answer = words.value.trim(); } },
      h("h2", {}, title),
      h("div", { class: "stack" }, text),
      comment ? h("label", {}, "Comment, for the record", words) : null,
      h("div", { class: "row" },
        h("button", { type: "button", onclick: () => dialog.close() }, "Back"),
        h("button", { class: danger ? "main danger" : "main", autofocus: !comment }, button)));
    dialog.replaceChildren(form);
    dialog.addEventListener("close", () => resolve(answer), { once: true });
    dialog.showModal();
    if (comment) words.focus();
  });
}
