"use strict";
const main = document.getElementById("main");
function filter() {
  const field = document.getElementById("filter");
  const wanted = field.value.toLowerCase();
  for (const row of document.querySelectorAll("tr[data-org]")) {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  }
}
async function refresh() {
  const open = [...document.querySelectorAll("details")].map((each) => each.open);
  const old = document.getElementById("filter");
  const kept = { value: old.value, focused: document.activeElement === old };
  try {
    const answer = await fetch("/", { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    main.replaceChildren(...fresh.getElementById("main").childNodes);
  } catch {
    return;
  }
  document.querySelectorAll("details").forEach((each, index) => { each.open = open[index] ?? false; });
  const field = document.getElementById("filter");
  field.value = kept.value;
  field.addEventListener("input", filter);
  if (kept.focused) field.focus();
  filter();
}
document.getElementById("filter").addEventListener("input", filter);
setInterval(refresh, 1000);
