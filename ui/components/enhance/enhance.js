export default function (component) {
  const { setTriggerValue } = component
  const cursor = (value) => {
    document.querySelectorAll('.hist').forEach((hist) => {
      const line = hist.querySelector('.cursor')
      if (!line) return
      const lo = Math.log(+hist.dataset.lo), hi = Math.log(+hist.dataset.hi)
      const at = value > 0 ? (Math.log(value) - lo) / (hi - lo) : NaN
      line.style.display = Number.isFinite(at) ? 'block' : 'none'
      if (Number.isFinite(at)) line.style.left = 100 * Math.min(1, Math.max(0, at)) + '%'
    })
  }
  const over = (event) => {
    const token = event.target.closest && event.target.closest('.ctx [data-x]')
    cursor(token ? +token.dataset.x : NaN)
  }
  const click = (event) => {
    if (event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return
    const link = event.target.closest && event.target.closest('a[data-latent]')
    if (!link) return
    event.preventDefault()
    setTriggerValue('open', { d: link.dataset.dictionary || '', i: link.dataset.latent })
  }
  document.addEventListener('mouseover', over)
  document.addEventListener('click', click)
  return () => {
    document.removeEventListener('mouseover', over)
    document.removeEventListener('click', click)
  }
}
