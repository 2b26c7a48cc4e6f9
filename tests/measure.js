() => {
  // What tests/test_page.py measures of the page: contrasts by WCAG 2, and what does not fit.
  const numbers = (text) => (text.match(/[\d.]+/g) ?? []).map(Number);
  const part = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const contrast = (a, b) => {
    const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = numbers(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const shown = (element) => element.checkVisibility() && element.getBoundingClientRect().width > 0;
  const texts = [];
  const drawings = [];
  const outside = [];
  const cut = [];
  for (const element of document.querySelectorAll("body *")) {
    if (!shown(element) || ["SCRIPT", "NOSCRIPT", "TEMPLATE"].includes(element.tagName)) continue;
    const box = element.getBoundingClientRect();
    const style = getComputedStyle(element);
    if (box.right > innerWidth + 0.5 || box.left < -0.5) outside.push(`${element.tagName} ${element.textContent}`);
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    if (text) {
      const colour = numbers(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
      texts.push([text, contrast(colour, behind(element))]);
      if (element instanceof HTMLElement && element.clientWidth && element.scrollWidth > element.clientWidth + 1) cut.push(text);
    }
    if (element.matches(".node circle, .icon, .line.on")) {
      drawings.push([element.parentElement.getAttribute("class"), contrast(numbers(style.stroke), behind(element))]);
    }
    if (element.matches("text.value")) {
      const circle = element.parentElement.querySelector("circle").getBoundingClientRect();
      if (box.left < circle.left || box.right > circle.right) cut.push(text);
    }
    if (element.matches("svg text")) {
      const picture = element.closest("svg").getBoundingClientRect();
      if (box.left < picture.left || box.right > picture.right || box.bottom > picture.bottom) cut.push(text);
    }
  }
  return { texts, drawings, outside, cut, wide: document.documentElement.scrollWidth - innerWidth };
}
