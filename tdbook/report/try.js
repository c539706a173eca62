// Goes on with typed text (try.html.j2). It stands behind wllama's own code, in one module. Texts and
// names are only ever set as text.

const one = selector => document.querySelector(selector), field = name => one(`[name=${name}]`);
const models = [...document.querySelectorAll("[data-context]")].map(({id, dataset}) =>
  ({id, context: Number(dataset.context), box: one(`#box-${id}`)}));
const bytes = new TextDecoder(), quiet = () => {};
let stopped = true;

// A worker that is a module cannot begin from a file; wllama asks for one, and needs none.
const Module = Worker;
globalThis.Worker = class extends Module { constructor(address) { super(address); } };

function taken(id) {  // the base64 of an element, which lets it go
  const text = one(`#${id}`).textContent;
  one(`#${id}`).remove();
  return text;
}

function blob(text, step = 2 ** 20) {  // of base64, a part at a time
  const parts = [];
  for (let at = 0; at < text.length; at += step) {
    const raw = atob(text.slice(at, at + step)), part = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) part[i] = raw.charCodeAt(i);
    parts.push(part);
  }
  return new Blob(parts);
}

const show = (model, state) => model.box.querySelector("[role=status]").textContent = state;
const faulty = (model, error) => show(model, `It stopped: ${error?.message ?? error}`);

async function load(model, address) {
  const buffers = [], debug = line => buffers.push(Number(/buffer size = +([\d.]+) MiB/.exec(line)?.[1] ?? 0));
  const logger = {debug, log: quiet, warn: quiet, error: error => faulty(model, error)};
  model.run = new Wllama({"single-thread/wllama.wasm": address}, {logger});
  await model.run.loadModel([blob(taken(model.id))], {n_ctx: model.context, n_threads: 1});
  const mebibytes = buffers.reduce((a, b) => a + b, 0);  // weights, keys and values, what is computed
  show(model, `ready; takes ${Math.ceil(mebibytes * 1.048576)} MB of memory`);
}

// Draws as `make chat` does, from the whole distribution. The state of its generator goes on: the
// same text is gone on with in another way.
async function begin({run, context, ...model}, text, temperature) {
  const ids = await run.tokenize(text, false);  // what spells a special token stays text
  if (run.mustAddBosToken()) ids.unshift(run.getBOS());
  if (!ids.length) ids.push(run.getEOS());
  if (ids.length >= context) throw new Error(`${ids.length} tokens fill its ${context}: shorten the text`);
  if (temperature !== model.temperature) await run.samplingInit({temp: temperature, top_k: 0, top_p: 1, min_p: 0});
  await run.kvClear();
  await run.decode(ids, {});
  return context - ids.length;
}

async function goOn(model, text, temperature, most) {
  const [typed, written] = model.box.querySelectorAll(".text span"), ids = [], pieces = [];
  [typed.textContent, written.textContent, written.dataset.ids] = [text, "", ""];
  show(model, "reads …");
  const room = Math.min(most, await begin(model, text, temperature)), began = performance.now();
  model.temperature = temperature;
  while (!stopped && ids.length < room) {
    const {token, piece} = await model.run.samplingSample();
    if (model.run.isTokenEOG(token)) break;
    ids.push(token);
    pieces.push(...piece);
    written.textContent = bytes.decode(new Uint8Array(pieces)).replace(/\uFFFD+$/, "");  // half a letter
    written.dataset.ids = ids.join(" ");
    if (ids.length < room) await model.run.decode([token], {});
    const speed = 1000 * ids.length / (performance.now() - began);
    show(model, `${ids.length} tokens, ${speed.toFixed(1)} a second`);
  }
}

function busy(now) {
  stopped = !now;
  const held = [one("#go"), one("#stop")].includes(document.activeElement);
  [one("#go").disabled, one("#stop").disabled] = [now, !now];
  if (held) one(now ? "#stop" : "#go").focus();  // a disabled button would lose it
}

one("#go").onclick = async () => {
  busy(true);
  const given = [field("text").value, field("temperature").valueAsNumber, field("most").valueAsNumber || 200];
  await Promise.all(models.filter(model => model.run).map(model => goOn(model, ...given).catch(error => faulty(model, error))));
  busy(false);
};
one("#stop").onclick = () => { stopped = true; };
field("temperature").oninput = ({target}) => { one("output").value = target.value; };

const address = `data:application/wasm;base64,${taken("wasm")}`;
for (const model of models) {
  await load(model, address).catch(error => { delete model.run; faulty(model, error); });
}
one("#go").disabled = !models.some(model => model.run);
