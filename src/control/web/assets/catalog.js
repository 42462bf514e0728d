// The catalog: dataset, block, file, replica.
import { get } from "./api.js";
import { facts, fill, h, linked, table } from "./dom.js";
import { bytes, count, when } from "./words.js";

const at = (path) => `#/catalog${path.map((part) => `/${encodeURIComponent(part)}`).join("")}`;

function replicas(file) {
  if (!file.replicas.length) return h("span", { class: "dim" }, "none");
  return h("span", { class: "row" }, file.replicas.map((r) => h("span", { class: "tag" }, r.locality === "offline" ? `${r.agent} (tape)` : r.agent)));
}

/** `rest`: nothing; a dataset; a dataset and a block; these and a file. */
export function mount(root, { rest, params, go }) {
  const [dataset, block, lfn] = rest;
  const prefix = params.get("prefix") ?? "";
  let rows = [];
  let next = null;
  let shown = 100;
  const body = h("div", { class: "card" });
  const names = ["Catalog", dataset, block, lfn].filter((n) => n !== undefined);
  const title = names.at(-1);
  const crumbs = names.length > 1 ? h("div", { class: "crumbs" }, names.slice(0, -1).map((name, n) => h("a", { href: at(rest.slice(0, n)) }, name))) : null;
  const search = dataset ? null : h("form", { class: "row push", onsubmit: (event) => {
    event.preventDefault();
    const value = new FormData(event.target).get("prefix").trim();
    go(value ? `#/catalog?${new URLSearchParams({ prefix: value })}` : "#/catalog");
  } }, h("input", { name: "prefix", size: 24, value: prefix, placeholder: "At or below, e.g. /cosmics", "aria-label": "At or below this name" }), h("button", {}, "Filter"));
  fill(root, h("div", { class: "stack" }, crumbs, h("div", { class: "head" }, h("h1", {}, title), search)), body);

  const group = (path, empty) => table(["Name", path.length ? null : ["Blocks", "num"], ["Files", "num"], ["Size", "num"]].filter(Boolean), rows.map((g) => {
    const href = at([...path, g.name]);
    return linked(href, [[h("a", { href }, g.name), "name"], path.length ? null : [count(g.blocks ?? 0), "num"], [count(g.files), "num"], [bytes(g.bytes), "num"]].filter(Boolean));
  }), empty);

  function draw() {
    if (lfn !== undefined) {
      const file = rows[0];
      if (!file) return;
      fill(body, h("div", { class: "pad stack" },
        facts([["Size", `${bytes(file.bytes)} (${count(file.bytes)} bytes)`], ["Digest", file.digest ? h("code", {}, file.digest) : "not known yet"],
          ["Dataset", file.dataset ?? "–"], ["Block", file.block ?? "–"]])),
      table(["Agent", "Path below its root", "Where", "Last verified"], file.replicas.map((r) => [r.agent, [r.path, "name"],
        r.locality === "offline" ? h("span", { class: "chip hold" }, "On tape") : h("span", { class: "chip good" }, "Online"),
        r.verified ? when(r.verified) : h("span", { class: "dim" }, "never")]), "No agent has it any more."));
      return;
    }
    const made = dataset === undefined ? group([], prefix ? "No dataset at or below this name." : "The catalog is empty: see longhaul catalog add --help.")
      : block === undefined ? group([dataset], "This dataset has no blocks.")
        : table(["File", ["Size", "num"], "Digest", "Replicas"], rows.map((file) => {
          const href = at([dataset, block, file.lfn]);
          return linked(href, [[h("a", { href }, file.lfn), "name"], [bytes(file.bytes), "num"],
            file.digest ? h("code", { title: file.digest }, `${file.digest.slice(0, 10)}…`) : h("span", { class: "dim" }, "–"), replicas(file)]);
        }), "This block has no files.");
    fill(body, made, next ? h("div", { class: "foot" }, h("button", { type: "button", onclick: () => { shown += 200; refresh(); } }, "Show more")) : null);
  }

  async function refresh() {
    if (lfn !== undefined) {
      rows = [await get("/v1/catalog/file", { lfn })];
      draw();
      return;
    }
    const [path, query] = dataset === undefined ? ["datasets", { prefix }] : block === undefined ? ["blocks", { dataset }] : ["files", { dataset, block }];
    let found = [];
    let cursor;
    do {
      const page = await get(`/v1/catalog/${path}`, { ...query, limit: Math.min(shown - found.length, 500), cursor });
      found = found.concat(page.items);
      cursor = page.next;
    } while (cursor && found.length < shown);
    [rows, next] = [found, cursor];
    draw();
  }
  return { refresh, draw, wants: (event) => event.kind.startsWith("catalog.") || event.kind === "item.done" };
}
