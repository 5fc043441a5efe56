'use strict';
const said = document.getElementById('said'), rows = [...document.querySelectorAll('table.sort tbody tr')];
for (const table of document.querySelectorAll('table.sort')) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, at) => {
    if (!head.dataset.first) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const now = head.getAttribute('aria-sort'), to = now ? (now == 'ascending' ? 'descending' : 'ascending') : head.dataset.first, sign = to == 'ascending' ? 1 : -1;
      const key = row => row.cells[at].dataset.v ?? row.cells[at].textContent, numbers = 'v' in (body.rows[0].cells[at].dataset);
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === '' || y === '') return (x === '') - (y === '');   // what is missing comes last, either way
        return sign*(numbers ? x - y : x.localeCompare(y));
      };
      body.append(...[...body.rows].sort(order));
      heads.forEach(h => h.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', to);
      said.textContent = `Sorted by ${button.textContent.trim()}, ${to}`;
    };
  });
}
const filter = document.getElementById('filter');
filter.closest('p').hidden = false;
filter.oninput = () => {
  const wanted = filter.value.toLowerCase();
  for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
  said.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows shown`;
};
