// The search by file name, and the switch of the cycle's error.
const folded = text => text.normalize().toLowerCase();
document.querySelector("#search").oninput = event => {
  const cards = all(".card"), part = folded(event.target.value);
  for (const card of cards) card.hidden = !folded(card.dataset.names).includes(part);
  say(event.target, `${cards.filter(card => !card.hidden).length} of ${cards.length}`);
};
for (const box of all("#cycle")) box.oninput = () => { document.body.classList.toggle("errors", box.checked); };
for (const input of all("#search, #cycle")) input.dispatchEvent(new Event("input"));
