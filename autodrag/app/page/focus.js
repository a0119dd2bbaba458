// Roving focus: a toolbar is one stop of the Tab key, and arrow keys move inside it.

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export function rove(container, selector) {
  const items = () => [...container.querySelectorAll(selector)].filter((item) => !item.disabled);
  const settle = (current) => {
    for (const item of items()) item.tabIndex = item === current ? 0 : -1;
  };
  container.addEventListener("focusin", ({ target }) => target.matches(selector) && settle(target));
  container.addEventListener("keydown", (event) => {
    const all = items();
    const at = all.indexOf(document.activeElement);
    const ends = { Home: 0, End: all.length - 1 };
    const to = event.key in STEPS ? (at + STEPS[event.key] + all.length) % all.length : ends[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    all[to].focus();
  });
  const start = () => {
    const all = items();
    if (all.length && !all.includes(document.activeElement)) settle(all.find((item) => item.matches('[aria-pressed="true"], [aria-current="true"]')) ?? all[0]);
  };
  start();
  return start; // call it after the items have changed
}
