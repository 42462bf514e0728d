// The frame: who is there, which view is shown, and when it is looked at again.
import { ended, follow, get, is, login, logout, me, resume } from "./api.js";
import { fill, h, toast } from "./dom.js";
import { forget, note } from "./live.js";
import { mount as agents } from "./agents.js";
import { mount as board } from "./board.js";
import { mount as catalog } from "./catalog.js";
import { mount as request } from "./request.js";
import { mount as requests } from "./requests.js";

// Between two looks of one view, however much happens.
const CALM = 800;

const views = [
  ["requests", "Requests", (rest) => (rest.length ? request : requests)],
  ["approval", "Approval", () => board],
  ["agents", "Agents", () => agents],
  ["catalog", "Catalog", () => catalog],
];

const root = document.getElementById("view");
let shown = null;
let stream = null;
let waiting = 0;

function parts() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const segments = path.split("/").filter(Boolean).map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { name: segments[0] ?? "requests", rest: segments.slice(1), params: new URLSearchParams(query) };
}

function go(hash) {
  if (location.hash === hash) route();
  else location.hash = hash;
}

function navigation() {
  const { name } = parts();
  fill(document.getElementById("nav"), views.map(([id, title]) => h("a", { href: `#/${id}`, "aria-current": id === name ? "page" : null }, title,
    id === "approval" && waiting ? h("span", { class: "count", "aria-label": `${waiting} wait` }, waiting >= 100 ? "99+" : waiting) : null)));
}

async function countWaiting() {
  try {
    const page = await get("/v1/requests", { state: "pending_approval", limit: 100 });
    waiting = page.items.length;
    navigation();
  } catch { /* the view says what is wrong */ }
}

async function look(view) {
  if (view.busy) {
    view.again = true;
    return;
  }
  view.busy = true;
  try {
    await view.refresh();
    view.failed = false;
  } catch (error) {
    if (shown === view && error.status !== 401) {
      if (!view.drawn) fill(root, h("div", { class: "card" }, h("p", { class: "empty error" }, error.message)));
      else if (!view.failed) toast(error.message, "bad");
      view.failed = true;
    }
  }
  view.drawn = true;
  view.busy = false;
  if (view.again && shown === view) {
    view.again = false;
    soon(view);
  }
}

function soon(view) {
  if (view.timer) return;
  view.timer = setTimeout(() => {
    view.timer = null;
    if (shown === view) look(view);
  }, CALM);
}

function route() {
  if (!me()) return;
  const { name, rest, params } = parts();
  const found = views.find(([id]) => id === name) ?? views[0];
  clearInterval(shown?.clock);
  const view = found[2](rest)(root, { rest, params, go });
  view.clock = setInterval(() => (document.hidden ? null : look(view)), (view.every ?? 30) * 1000);
  shown = view;
  document.title = `${found[1]} · Longhaul`;
  navigation();
  window.scrollTo(0, 0);
  look(view);
}

function happened(event) {
  note(event);
  if (event.kind.startsWith("request.")) {
    clearTimeout(happened.timer);
    happened.timer = setTimeout(countWaiting, CALM);
  }
  if (shown?.wants(event)) soon(shown);
}

function live(on) {
  const dot = document.getElementById("live");
  dot.dataset.on = on ? "yes" : "no";
  dot.title = on ? "Live: changes are shown as they happen" : "Not live: looked at every 30 s";
  // What happened while the stream was away.
  if (on && shown) soon(shown);
}

function enter() {
  document.getElementById("bar").hidden = false;
  fill(document.getElementById("who"), `${me().name} (${me().roles.join(", ")})`);
  document.getElementById("who").title = me().datasets.length ? `For ${me().datasets.join(", ")}` : "For all datasets";
  stream = new AbortController();
  if (is("viewer", "submitter", "approver", "operator")) follow(happened, live, stream.signal);
  countWaiting();
  route();
}

function leave(why = "") {
  stream?.abort();
  clearInterval(shown?.clock);
  shown = null;
  waiting = 0;
  forget();
  document.getElementById("bar").hidden = true;
  document.title = "Longhaul";
  const field = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true, placeholder: "lht_…" });
  const error = h("p", { class: "error", role: "alert" }, why);
  const button = h("button", { class: "main" }, "Log in");
  const form = h("form", { onsubmit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await login(field.value.trim());
      enter();
    } catch (problem) {
      fill(error, problem.message);
      field.value = "";
      field.focus();
    }
    button.disabled = false;
  } }, h("label", {}, "Token", field), error, button,
  h("p", { class: "small dim" }, "The content of a token file with a role: ", h("code", {}, "longhaul token add NAME --role viewer"), ". It leaves this page once, in exchange for a session of twelve hours at most."));
  fill(root, h("div", { class: "login card pad stack" }, h("div", { class: "brand" }, h("img", { src: "/ui/icon.svg", alt: "", width: 28, height: 28 }), "Longhaul"), form));
  field.focus();
}

document.getElementById("logout").addEventListener("click", async () => {
  try {
    await logout();
  } catch { /* it is over here in any case */ }
  leave();
});
ended((why) => leave(why));
window.addEventListener("hashchange", route);
resume().then((session) => (session ? enter() : leave()), (error) => leave(error.message));
