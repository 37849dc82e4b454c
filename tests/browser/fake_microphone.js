// A microphone that says what a test gives it, when it is told to; silence otherwise.
(() => {
  let context, target;
  const open = () => {
    context ??= new AudioContext({ sampleRate: 48000 });
    target ??= context.createMediaStreamDestination();
    return target.stream.clone();
  };
  const real = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
  if (!real) return;
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    await real(wanted); // asks for the permission, as the real one does
    return open();
  };
  window.speak = async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const samples = new Int16Array(bytes.buffer);
    const buffer = context.createBuffer(1, samples.length, 48000);
    buffer.getChannelData(0).set(Float32Array.from(samples, (s) => s / 32768));
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(target);
    source.start();
    await new Promise((done) => (source.onended = done));
  };
  // The loudest 50 ms of all that the page plays of the agent, over so many milliseconds, or
  // until it is loud enough.
  window.loudness = async ([for_ms, enough]) => {
    const listening = new AudioContext();
    const analyser = listening.createAnalyser();
    analyser.fftSize = 2048;
    const heard = new Set();
    const samples = new Float32Array(2048);
    let loudest = 0;
    for (const end = performance.now() + for_ms; performance.now() < end && loudest < enough; ) {
      for (const element of document.querySelectorAll("audio.labvoice-sound")) {
        if (element.paused || element.muted || heard.has(element)) continue;
        heard.add(element);
        listening.createMediaStreamSource(element.srcObject).connect(analyser);
      }
      await new Promise((done) => setTimeout(done, 40));
      analyser.getFloatTimeDomainData(samples);
      loudest = Math.max(loudest, Math.sqrt(samples.reduce((sum, s) => sum + s * s, 0) / 2048));
    }
    await listening.close();
    return loudest;
  };
  // Presses a button of the widget as soon as its phase is this: a busy page is looked at too rarely
  // from outside to meet a reply of three seconds.
  window.pressWhen = ([phase, name]) =>
    new Promise((done) => {
      const widget = document.querySelector(".labvoice");
      const look = () => {
        if (widget.querySelector(".lv-phase").textContent !== phase) return;
        observer.disconnect();
        [...widget.querySelectorAll("button")].find((each) => each.textContent === name).click();
        done();
      };
      const observer = new MutationObserver(look);
      observer.observe(widget, { childList: true, characterData: true, subtree: true });
      look();
    });
})();
