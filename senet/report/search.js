// A box above a table of many rows: those whose first cell has what is typed stay.
for (const box of document.querySelectorAll("input[type=search]")) {
  const table = box.closest("details").querySelector("tbody");
  const found = box.nextElementSibling;
  const look = () => {
    const wanted = box.value.trim().toLowerCase();
    let count = 0;
    for (const row of table.rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      count += !row.hidden;
    }
    found.textContent = wanted ? `${count} of ${table.rows.length}` : "";
  };
  box.addEventListener("input", look);
  box.parentElement.hidden = false;
  look(); // a browser may keep what was typed before the page was loaded again
}
