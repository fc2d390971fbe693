export default function (component) {
  // Says that the reader sees what will stand here, or comes near it. The page scrolls inside an element of its own, so
  // that one is the frame that is watched: what is inside is asked for at once, what lies up to 300 px beyond its edges
  // once the page rests, so that what is seen comes first. The server draws one at a time, and hears one of two that are
  // said at once; so they stand in line, and the first says it again until it has been drawn, that is, until it is gone.
  const { parentElement, setTriggerValue } = component
  const line = (window.__workbenchNear ||= [])
  const busy = () => document.querySelector('[data-test-script-state=running]')
  const me = { timer: 0, say: () => { setTriggerValue('near', true); me.wait() } }
  me.wait = () => { me.timer = setTimeout(() => busy() ? me.wait() : me.say(), 800) }
  const place = parentElement.host || parentElement
  const root = place.closest('[data-testid=stMain]')
  let waiting = 0, asked = false
  const ask = () => {
    if (asked) return
    asked = true
    stop()
    if (line.push(me) === 1) me.say()
  }
  const watched = (rootMargin, act) => {
    const watch = new IntersectionObserver((seen) => { if (seen.some((s) => s.isIntersecting)) act() }, { root, rootMargin })
    watch.observe(place)
    return watch
  }
  const later = () => {
    clearTimeout(waiting)
    waiting = setTimeout(() => busy() ? later() : ask(), 600)
  }
  const watches = [watched('0px', ask), watched('300px 0px', later)]
  const stop = () => { watches.forEach((w) => w.disconnect()); clearTimeout(waiting) }
  return () => {
    asked = true
    stop()
    clearTimeout(me.timer)
    const at = line.indexOf(me)
    if (at >= 0) line.splice(at, 1)
    if (at === 0) line[0]?.say()
  }
}
