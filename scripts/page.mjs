// The page of a main, in a real browser: logs in, opens every view, takes a picture of each (light, dark, narrow), and fails when
// the browser objects to anything: an error on the console, a breach of the page's policy, an alert out of a name.
//
//   node --experimental-websocket scripts/page.mjs http://127.0.0.1:8470 TOKEN_FILE PICTURES [HASH...]
//
// Needs node 20 or later and Chromium; installs nothing. The token is read from a file and typed into the page's own form.
import { spawn } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const [url, tokenFile, out, ...more] = process.argv.slice(2);
if (!out) {
  console.error("usage: page.mjs URL TOKEN_FILE PICTURES [HASH...]");
  process.exit(2);
}
const token = readFileSync(tokenFile, "utf8").trim();
mkdirSync(out, { recursive: true });
const profile = mkdtempSync(join(tmpdir(), "longhaul-page-"));
const browser = spawn("chromium", ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", `--user-data-dir=${profile}`, "--ignore-certificate-errors", "about:blank"], { stdio: ["ignore", "ignore", "pipe"] });
const end = (code) => {
  browser.on("exit", () => {
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    process.exit(code);
  });
  browser.kill();
};
const clock = setTimeout(() => { console.error("given up after two minutes"); end(1); }, 120000);
clock.unref();

const endpoint = await new Promise((resolve, reject) => {
  let text = "";
  browser.stderr.on("data", (data) => {
    text += data;
    const found = text.match(/DevTools listening on (ws:\S+)/);
    if (found) resolve(found[1]);
  });
  browser.on("error", reject);
});
const socket = new WebSocket(endpoint);
await new Promise((resolve) => socket.addEventListener("open", resolve, { once: true }));
const waiting = new Map();
const wrong = [];
let count = 0;
let session;
socket.addEventListener("message", ({ data }) => {
  const { id, result, error, method, params } = JSON.parse(data);
  if (id) {
    const [resolve, reject] = waiting.get(id);
    waiting.delete(id);
    error ? reject(new Error(error.message)) : resolve(result);
  } else if (method === "Runtime.exceptionThrown") wrong.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
  else if (method === "Log.entryAdded" && params.entry.level === "error") wrong.push(`${params.entry.text} ${params.entry.url ?? ""}`);
  else if (method === "Runtime.consoleAPICalled" && params.type === "error") wrong.push(params.args.map((a) => a.value ?? a.description).join(" "));
  else if (method === "Page.javascriptDialogOpening") {
    wrong.push(`a dialog opened: ${params.message}`);
    send("Page.handleJavaScriptDialog", { accept: false });
  }
});
function send(method, params = {}) {
  count += 1;
  const id = count;
  socket.send(JSON.stringify({ id, method, params, sessionId: session }));
  return new Promise((resolve, reject) => waiting.set(id, [resolve, reject]));
}
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
async function evaluate(expression) {
  const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
  if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
  return result.value;
}
async function until(expression, what) {
  for (let i = 0; i < 100; i += 1) {
    if (await evaluate(expression)) return;
    await pause(100);
  }
  throw new Error(`waited in vain for ${what}`);
}
async function picture(name) {
  const { cssContentSize: size } = await send("Page.getLayoutMetrics");
  const clip = { x: 0, y: 0, width: size.width, height: Math.min(size.height, 2400), scale: 1 };
  const { data } = await send("Page.captureScreenshot", { format: "png", clip, captureBeyondViewport: true });
  writeFileSync(join(out, `${name}.png`), Buffer.from(data, "base64"));
}
async function screen(width, height, scheme) {
  await send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
  await send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
}

try {
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  ({ sessionId: session } = await send("Target.attachToTarget", { targetId, flatten: true }));
  for (const domain of ["Page", "Runtime", "Log"]) await send(`${domain}.enable`);
  await screen(1280, 800, "light");
  await send("Page.navigate", { url });
  await until("Boolean(document.getElementById('token'))", "the login");
  // Nobody is logged in: the browser notes the 401 that says so.
  wrong.length = 0;
  await picture("login");
  await evaluate("document.getElementById('token').focus()");
  await send("Input.insertText", { text: token });
  await evaluate("document.querySelector('form button').click()");
  await until("!document.getElementById('bar').hidden", "the session");
  await until("document.getElementById('live').dataset.on === 'yes'", "the stream of events");
  if (await evaluate("document.cookie")) wrong.push("a script can read the cookie");
  const views = ["#/requests", "#/approval", "#/agents", "#/catalog", ...more];
  for (const hash of views) {
    await evaluate(`location.hash = ${JSON.stringify(hash)}`);
    await pause(700);
    const name = hash.replace(/^#\//, "").replace(/[^a-z0-9]+/gi, "-").slice(0, 60) || "start";
    await screen(1280, 800, "light");
    await picture(name);
    if (await evaluate("document.documentElement.scrollWidth > innerWidth + 1")) wrong.push(`${hash} is wider than the window`);
    await screen(1280, 800, "dark");
    await picture(`${name}-dark`);
    await screen(420, 800, "light");
    await picture(`${name}-narrow`);
    if (await evaluate("document.documentElement.scrollWidth > innerWidth + 1")) wrong.push(`${hash} is wider than a narrow window`);
    await screen(1280, 800, "light");
    // What opens on a click, where there is something to click. Nothing is confirmed.
    const press = (text) => evaluate(`(() => { const b = [...document.querySelectorAll("main button")].find((b) => b.textContent === ${JSON.stringify(text)}); b?.click(); return Boolean(b); })()`);
    for (const text of ["History", "Approve", "Delete"]) {
      if (!(await press(text))) continue;
      await pause(500);
      await picture(`${name}-${text.toLowerCase()}`);
      await evaluate("document.getElementById('ask').open && document.querySelector('#ask button[type=button]').click()");
    }
  }
  const foreign = await evaluate("performance.getEntriesByType('resource').map((e) => e.name).filter((n) => !n.startsWith(location.origin))");
  if (foreign.length) wrong.push(`loaded from elsewhere: ${foreign}`);
  if (await evaluate("document.querySelectorAll('[style*=\"expression\"], main script, main img[src=x]').length")) wrong.push("markup came out of a name");
} catch (error) {
  wrong.push(error.message);
}
for (const what of wrong) console.error(what);
console.log(wrong.length ? `${wrong.length} objections` : "the browser objects to nothing");
end(wrong.length ? 1 : 0);
