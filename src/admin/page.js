"use strict";
// The page is whole without this. With it, it refreshes itself without losing focus, selection or what is unfolded,
// tells time as people do, and says when it has lost the gateway.

const main = document.getElementById("main");
const number = new Intl.NumberFormat("en");
const INSTANT = /\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z/;
const DAY = 86400;

function span(seconds) {
  const whole = Math.round(Math.abs(seconds));
  const [days, hours, minutes] = [Math.floor(whole / DAY), Math.floor(whole / 3600), Math.floor(whole / 60)];
  if (days >= 3) return `${days} d`;
  if (hours >= 1) return `${hours} h ${minutes % 60} min`;
  return minutes >= 1 ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

// How far this machine's clock is behind the gateway's, whose instants these are.
let behind = 0;
const left = (instant) => (Date.parse(instant) - Date.now() - behind) / 1000;
const away = (instant) => (left(instant) >= 0 ? `in ${span(left(instant))}` : `${span(left(instant))} ago`);
const grouped = (text) => text.replace(/(?<![\d.])\d{5,}/g, (digits) => number.format(digits));

// Instants become <time>, long numbers get their groups: in text nodes, never in what may be copied for a command.
function readable(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walker.nextNode()) texts.push(walker.currentNode);
  for (const text of texts) {
    const within = text.parentElement;
    if (within.closest("code, pre, output")) continue;
    const limit = within.closest(".limit small");
    const found = INSTANT.exec(text.data);
    if (found) {
      const time = Object.assign(document.createElement("time"), { dateTime: found[0], title: found[0] });
      const rest = text.splitText(found.index);
      rest.data = rest.data.slice(found[0].length);
      rest.before(time);
      if (limit) {
        time.textContent = left(found[0]) > 0 ? away(found[0]) : "now";
      } else {
        time.textContent = `${found[0].slice(0, 16).replace("T", " ")} UTC`;
        time.after(Object.assign(document.createElement("small"), { textContent: ` ${away(found[0])}` }));
      }
    }
    if (limit || within.closest(".number")) text.data = grouped(text.data);
  }
}

// Makes `into` look like `from` and leaves every node in place that can stay.
function morph(into, from) {
  if (into.nodeName !== from.nodeName) {
    into.replaceWith(from);
    return;
  }
  if (into.nodeType === Node.TEXT_NODE) {
    if (into.data !== from.data) into.data = from.data;
    return;
  }
  const kept = (name) => name === "open" || name === "hidden";
  for (const { name } of [...into.attributes]) if (!kept(name) && !from.hasAttribute(name)) into.removeAttribute(name);
  for (const { name, value } of from.attributes) {
    if (!kept(name) && into.getAttribute(name) !== value) into.setAttribute(name, value);
  }
  const [old, fresh] = [[...into.childNodes], [...from.childNodes]];
  old.slice(fresh.length).forEach((node) => node.remove());
  fresh.forEach((node, index) => (index < old.length ? morph(old[index], node) : into.append(node)));
}

// Whoever fits, and everybody below one whose name fits.
function filter() {
  const wanted = document.getElementById("filter").value.trim().toLowerCase();
  const rows = [...main.querySelectorAll("tr[data-org]")];
  const fits = (node) => node.textContent.toLowerCase().includes(wanted);
  const leads = new Set(rows.filter((row) => fits(row.cells[0])).map((row) => row.dataset.org));
  for (const row of rows) row.hidden = !(fits(row) || row.dataset.above.split(" ").some((lead) => leads.has(lead)));
  const shown = rows.filter((row) => !row.hidden).length;
  main.querySelector(".filter output").value = wanted ? `${shown} of ${rows.length}` : "";
}

const lost = Object.assign(document.createElement("p"), { className: "alarm lost", hidden: true });
lost.setAttribute("role", "alert");

function prepare(root) {
  readable(root);
  root.querySelector(".filter").append(document.createElement("output"));
  root.querySelector("header").after(lost.cloneNode());
}

let since = Date.now();

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(answer.status);
    behind = Date.parse(answer.headers.get("date")) - Date.now() || 0;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("main");
    prepare(fresh);
    const open = new Set([...main.querySelectorAll("details[open]")].map((details) => details.dataset.key));
    morph(main, fresh);
    main.querySelectorAll("details").forEach((details) => { details.open = open.has(details.dataset.key); });
    document.title = page.title;
    filter();
    since = Date.now();
  } catch {
    const told = main.querySelector(".lost");
    told.hidden = false;
    told.textContent = `The gateway has not answered for ${span((Date.now() - since) / 1000)}. What follows is what it said last.`;
    return;
  }
  main.querySelector(".lost").hidden = true;
}

async function live() {
  await refresh();
  setTimeout(live, 1000);
}

prepare(main);
document.body.classList.add("scripted");
document.addEventListener("input", (event) => { if (event.target.id === "filter") filter(); });
document.addEventListener("visibilitychange", refresh);
document.addEventListener("keydown", (event) => {
  const typing = event.target.id === "filter";
  if (event.key === "/" && !typing) {
    event.preventDefault();
    document.getElementById("filter").focus();
  }
  if (event.key === "Escape" && typing) {
    event.target.value = "";
    filter();
  }
});
setTimeout(live, 1000);
