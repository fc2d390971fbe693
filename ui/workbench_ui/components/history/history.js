export default function (component) {
  if (window.__workbenchHistory) return
  window.__workbenchHistory = true
  const completed = component.data.completed, lasting = component.data.lasting, known = new Set(Object.values(completed).flat())
  const push = window.history.pushState.bind(window.history)
  let back = false
  window.addEventListener('popstate', () => { back = true })
  for (const act of ['pointerdown', 'keydown']) window.addEventListener(act, () => { back = false }, true)
  window.history.pushState = (state, title, url) => {
    const was = new URL(window.location.href), next = new URL(url, was)
    const a = was.searchParams, b = next.searchParams
    if (next.pathname !== was.pathname) return push(state, title, url)
    const added = [...b.keys()].filter((k) => !a.has(k)), removed = [...a.keys()].filter((k) => !b.has(k))
    const changed = [...a].some(([k, v]) => b.has(k) && b.get(k) !== v), kept = !removed.length && !changed
    const had = lasting.filter((k) => a.has(k))
    const mine = completed[next.pathname.split('/').pop()] || []
    const fewer = !added.length && !changed && removed.some((k) => known.has(k))
    const others = added.some((k) => known.has(k) && !mine.includes(k))
    const leaving = fewer || others || (had.length > 0 && !had.some((k) => b.has(k)))
    if (leaving || (kept && !added.length) || (back && !kept)) return
    return kept && (back || added.every((k) => known.has(k))) ? window.history.replaceState(state, title, url) : push(state, title, url)
  }
}
