// The page asks for status.json and shows it. Everything comes in as text, never as markup.
const PAUSE = 2000; // ms between two looks
const QUIET = 5; // W below which nothing flows that is worth a moving line
const FLOWS = ["solar", "grid", "battery", "generator", "home"];
const DIRECTION = {
  solar: () => "",
  generator: () => "",
  home: () => "",
  grid: (power) => (power > 0 ? "from the grid" : "to the grid"),
  battery: (power) => (power > 0 ? "discharging" : "charging"),
};
const shown = new Map(); // the article of each gateway by its host, and of each home

const find = (selector, within = document) => within.querySelector(selector);
const make = (tag, text = "", className = "") => {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
};
const heads = (text) => {
  const made = make("th", text); // a screen reader says it with each cell of its row
  made.scope = "row";
  return made;
};
const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

const known = (value) => typeof value === "number";
const fixed = (value, digits) => {
  if (!known(value)) return "\u2013";
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `\u2212${text}` : text;
};
const watts = (value) => {
  if (!known(value)) return "\u2013";
  return Math.abs(value) < 999.5 ? `${fixed(value, 0)} W` : `${fixed(value / 1000, 2)} kW`;
};
const span = (seconds) => {
  if (!known(seconds)) return "\u2013";
  if (seconds < 60 || (seconds < 120 && seconds % 60)) return `${Math.round(seconds)} s`;
  if (seconds < 3600 || (seconds < 7200 && seconds % 3600)) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
};
const brief = (seconds) => {
  if (!known(seconds)) return "\u2013";
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${fixed(seconds, 1)} s`;
};
const day = (text) => new Date(text).toLocaleDateString(undefined, { dateStyle: "medium" });

const moment = (text) => {
  const when = new Date(text);
  const isToday = when.toDateString() === new Date().toDateString();
  return when.toLocaleString(undefined, isToday ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
};
const old = (fresh, at) => {
  if (fresh) return "";
  return at ? `\u2013 of ${moment(at)}` : "\u2013 not of now";
};

const list = (place, pairs) => {
  place.replaceChildren(...pairs.flatMap(([name, text, mood = ""]) => [make("dt", name), make("dd", text, mood)]));
};

function token(given) {
  if (!given) return ["not needed", ""];
  if (!known(given.days)) return [given.set ? "set, but of no use" : "none yet", "bad"];
  const role = given.role ? `, ${given.role}` : "";
  if (given.days < 0) return [`ended on ${day(given.expires)}${role}`, "bad"];
  return [`until ${day(given.expires)} (${span(given.days * 86400)})${role}`, given.days < 14 ? "warn" : "good"];
}

function flow(card, gateway) {
  const words = [];
  const picture = find(".flow", card);
  picture.classList.toggle("stale", !gateway.fresh);
  picture.setAttribute("viewBox", gateway.flows.battery ? "0 0 420 352" : "0 0 420 252");
  say(find(".note", card), old(gateway.fresh, gateway.at));
  for (const name of FLOWS) {
    const found = gateway.flows[name];
    const power = found?.power;
    const moves = known(power) && Math.abs(power) >= QUIET;
    const node = find(`.node.${name}`, card);
    const line = find(`.line.${name}`, card);
    const there = found !== undefined || !["battery", "generator"].includes(name);
    for (const part of [node, line]) {
      part.toggleAttribute("hidden", !there);
      part.classList.toggle("on", moves);
      part.classList.toggle("out", moves && power < 0);
    }
    if (!there) continue;
    const towards = moves ? DIRECTION[name](power) : "";
    say(find(".value", node), watts(["grid", "battery"].includes(name) && known(power) ? Math.abs(power) : power));
    const charge = known(found?.soc) ? `${fixed(found.soc, 0)} %` : "";
    const off = found?.connected === false ? "off grid" : "";
    const state = find(".state", node);
    if (state) say(state, off || [charge, towards].filter(Boolean).join(", "));
    if (name === "battery") find(".charge", node).setAttribute("width", known(found.soc) ? 0.18 * found.soc : 0);
    words.push([name, watts(known(power) ? Math.abs(power) : power), towards, charge].filter(Boolean).join(" "));
  }
  picture.setAttribute("aria-label", words.join(", "));
}

function phases(card, meters, from, now) {
  const filled = meters.filter((meter) => meter.rows.length);
  card.classList.toggle("empty", !filled.length);
  const isRead = from !== null && (from.state === "absent" || known(from.age));
  say(find(".none", card), isRead ? "This gateway has no meters that tell phases." : "No meter has been read yet.");
  const at = isRead && known(from.age) ? new Date(new Date(now) - 1000 * from.age) : null;
  say(find(".note", card), filled.length ? old(from?.fresh, at) : "");
  const bodies = filled.map((meter) => {
    const body = make("tbody");
    const head = make("tr");
    const name = make("th", meter.name);
    name.colSpan = 6;
    name.scope = "rowgroup";
    head.append(name);
    body.append(head, ...meter.rows.map((row) => phase(row)));
    return body;
  });
  const table = find("table", card);
  table.replaceChildren(find("thead", table), ...bodies);
}

function phase(row) {
  const line = make("tr");
  const numbers = [[row.power, 0], [row.voltage, 1], [row.current, 2], [row.power_factor, 2], [row.frequency, 2]];
  line.append(heads(row.phase ? row.phase.toUpperCase() : "all"));
  line.append(...numbers.map(([value, digits]) => make("td", fixed(value, digits))));
  return line;
}

function source(given) {
  const states = {
    waiting: ["waiting", "dim"],
    good: given.fresh ? ["fresh", "good"] : ["stale", "warn"],
    failing: ["fails", "bad"],
  };
  const [word, mood] = states[given.state] ?? [given.state, ""];
  const line = make("tr");
  line.append(
    heads(given.name),
    make("td", word, mood),
    make("td", span(given.age)),
    make("td", brief(given.took)),
    make("td", span(given.period), "wide"),
    make("td", String(given.polls), "wide"),
    make("td", String(given.failures), given.failures ? "warn" : ""),
  );
  return line;
}

function command(given) {
  const moods = { confirmed: "good", unconfirmed: "warn", overridden: "warn", superseded: "dim", accepted: "", sent: "" };
  const line = make("tr");
  line.append(
    heads(given.set),
    make("td", given.value),
    make("td", given.state, moods[given.state] ?? "bad"),
    make("td", moment(given.at)),
  );
  return line;
}

function commands(card, given) {
  card.hidden = !given.length;
  find("tbody", card).replaceChildren(...given.map(command));
  const told = given.filter((each) => each.reason);
  const reason = (each) => make("li", `${each.set} ${each.value}: ${each.reason}${each.from ? `, from ${each.from}` : ""}`);
  find(".reasons", card).replaceChildren(...told.map(reason));
}

function article(key) {
  if (!shown.has(key)) {
    const made = find("#gateway").content.firstElementChild.cloneNode(true);
    shown.set(key, made);
    find("#gateways").append(made);
  }
  return shown.get(key);
}

// When the oldest values of a home were read; null where one of its gateways has given none.
function oldest(home, gateways) {
  const parts = gateways.filter((each) => home.gateways.includes(each.serial ?? each.host));
  const times = parts.map((each) => each.at);
  return times.length && !times.includes(null) ? times.sort()[0] : null;
}

function showHome(home) {
  const place = article(`home ${home.name}`);
  place.querySelectorAll(".phases, .sources, .commands").forEach((part) => part.remove());
  say(find(".name span", place), home.name);
  say(find(".name .dim", place), "all gateways of this home");
  flow(find(".power", place), home);
  say(find(".facts h3", place), "Home");
  list(find(".facts dl", place), [
    ["State", home.fresh ? "all gateways answer" : "not all gateways answer", home.fresh ? "good" : "bad"],
    ["Gateways", home.gateways.join(", ")],
    ...(home.problem ? [["Problem", home.problem, "warn"]] : []),
  ]);
}

// What the controller does, where it tells: a limit on solar power, and how it uses the batteries.
function inForce(given) {
  return [
    ...(given.limited ? [["Solar power", `limited: ${given.cause}`, "warn"]] : []),
    ...(given.task && given.task !== "none" ? [["Battery's task", given.task]] : []),
    ...(known(given.reserve) ? [["Reserve", `${fixed(given.reserve, 0)} %`]] : []),
    ...(given.obeyed === "no" ? [["Stored settings", "the controller does not obey them", "warn"]] : []),
  ];
}

function state(gateway) {
  if (gateway.online) return ["answers", "good"];
  if (gateway.refusing) return ["refuses the bridge", "bad"];
  return [gateway.asked ? "does not answer" : "not asked yet", "bad"];
}

function show(gateway, now) {
  const place = article(gateway.host);
  say(find(".name span", place), gateway.name ?? "Gateway");
  say(find(".name .dim", place), gateway.serial ?? "not known yet");
  flow(find(".power", place), gateway);
  phases(find(".phases", place), gateway.meters, gateway.meters_source, now);
  const answers = gateway.sources.filter((each) => each.fresh).length;
  list(find(".facts dl", place), [
    ["State", ...state(gateway)],
    ["Address", gateway.address, gateway.address === gateway.host ? "" : "warn"],
    ...(gateway.address === gateway.host ? [] : [["In the settings", gateway.host]]),
    ["Firmware", gateway.firmware ?? "not known yet"],
    ["Token", ...token(gateway.token)],
    ["Fresh sources", `${answers} of ${gateway.sources.filter((each) => each.fresh !== null).length}`],
    ...(gateway.held ? [["Counters held", String(gateway.held), "warn"]] : []),
    ...inForce(gateway.controller),
  ]);
  const lacking = gateway.sources.filter((each) => each.state === "absent").map((each) => each.name);
  const there = gateway.sources.filter((each) => each.state !== "absent");
  find(".sources tbody", place).replaceChildren(...there.map(source));
  const errors = there.filter((each) => each.state === "failing" && each.error);
  find(".errors", place).replaceChildren(...errors.map((each) => make("li", `${each.name}: ${each.error}`)));
  commands(find(".commands", place), gateway.commands);
  say(find(".lacking", place), lacking.length ? `This gateway does not have: ${lacking.join(", ")}.` : "");
}

function verdict(mood, text, reasons) {
  const place = find("#verdict");
  if (place.className !== `verdict ${mood}`) place.className = `verdict ${mood}`;
  say(find("#summary"), text);
  if (find("#reasons").dataset.shown === reasons.join("\n")) return;
  find("#reasons").dataset.shown = reasons.join("\n");
  find("#reasons").replaceChildren(...reasons.map((reason) => make("li", reason)));
}

function render(status) {
  document.body.classList.remove("lost");
  const told = [...status.reasons, ...status.warnings];
  if (status.reasons.length) verdict("bad", "There is a problem", told);
  else if (status.warnings.length) verdict("warn", "Everything works, but somebody should look after this", told);
  else verdict("good", "Everything works", []);
  say(find("#time"), `as of ${new Date(status.now).toLocaleTimeString()}`);
  say(find("#about"), `Version ${status.version}, running for ${span(status.uptime)}.`);
  status.homes.forEach((home) => showHome({ ...home, at: oldest(home, status.gateways) }));
  status.gateways.forEach((gateway) => show(gateway, status.now));
  const broker = status.broker;
  find("#broker").hidden = false;
  list(find("#broker dl"), [
    ["State", broker.connected ? `connected, MQTT ${broker.protocol}` : "not connected", broker.connected ? "good" : "bad"],
    ["Address", broker.address],
    ["Topics", String(broker.topics)],
    ["To be sent", String(broker.unsent)],
    ["Messages sent", String(broker.sent)],
  ]);
}

async function look() {
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    render(await answer.json());
  } catch {
    document.body.classList.add("lost");
    verdict("bad", "The bridge does not answer this page any more", []);
  }
}

async function follow() {
  if (!document.hidden) await look();
  setTimeout(follow, PAUSE);
}

document.addEventListener("visibilitychange", () => !document.hidden && look());
follow();
