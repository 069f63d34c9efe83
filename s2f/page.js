// The page: what is heard, the face that it becomes, and what can be done with it.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);
const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const MAX_SECONDS = Number(document.body.dataset.maxSeconds);
const MAX_MB = Number(document.body.dataset.maxMb);
const PIECE_SECONDS = 0.25;  // of sound that are sent together
const UNREACHED = 'The program that serves this page cannot be reached. Is it still running?';

const model = () => one('#model')?.value ?? '';
const ask = (path, body, query = [], signal = undefined) => {
  const parameters = new URLSearchParams([['model', model()], ...query]);
  return fetch(`${path}?${parameters}`, {method: 'POST', body, signal});
};

// Embeddings, as the server has them: float32 in base64.
const vector = text => new Float32Array(Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
const joined = vectors => new Blob(vectors);
const moved = (base, steps) => base.map((x, k) => x + steps.reduce((sum, [t, step]) => sum + t * step[k], 0));
const MOST_SAVED = 300;  // embeddings of an animation
const thinned = vectors => vectors.filter((_, k) => k % Math.ceil(vectors.length / (MOST_SAVED - 1)) === 0 || k === vectors.length - 1);

// A face, which melts into the next one, and its landmarks.
class Face {
  constructor(root) {
    this.stack = one('.stack', root);
    this.svg = one('svg', root);
    this.asked = 0;
    const landmarks = one('.landmarks', root);
    landmarks.onchange = () => this.svg.toggleAttribute('hidden', !landmarks.checked);
  }

  async show({face, landmarks}) {
    const asked = ++this.asked;
    const picture = made('img', {src: face, alt: this.stack.dataset.alt, className: 'coming'});
    await picture.decode();
    if (asked !== this.asked) return;  // a later one was faster
    for (const old of all('img', this.stack)) old.alt = '';
    one('p', this.stack)?.remove();
    this.stack.append(picture);
    picture.getBoundingClientRect();  // so that the change of opacity is seen as one
    picture.classList.remove('coming');
    while (this.svg.childElementCount < landmarks.length)
      this.svg.append(document.createElementNS('http://www.w3.org/2000/svg', 'circle'));
    landmarks.forEach(([x, y], k) => {
      const circle = this.svg.children[k];
      circle.setAttribute('r', 1.6);
      circle.style.transform = `translate(${x + 0.5}px, ${y + 0.5}px)`;
    });
    await Promise.allSettled(picture.getAnimations().map(change => change.finished));
    // Those below it are covered now; those above it may still be faint.
    const pictures = all('img', this.stack);
    pictures.slice(0, Math.max(0, pictures.indexOf(picture))).forEach(old => old.remove());
  }
}

// What is said of what happens, and how far it is.
class Status {
  constructor(root) {
    [this.text, this.bar] = [one('.status', root), one('progress', root)];
  }

  say(text, wrong = false) {
    this.text.textContent = text;
    this.text.classList.toggle('wrong', wrong);
    this.bar.hidden = true;
  }

  tell(done, total, text) {
    this.say(text);
    [this.bar.hidden, this.bar.max, this.bar.value] = [false, total, done];
  }
}

// Ask for an answer, which comes line by line; null if it is refused, or another question came.
class Question {
  constructor(status) {
    this.status = status;
  }

  async ask(path, sound) {
    this.stop();
    const abort = this.abort = new AbortController();
    if (sound.size > MAX_MB * 2 ** 20) {
      this.status.say(`It is too large: up to ${MAX_MB} MB can be sent.`, true);
      return null;
    }
    this.status.tell(0, 1, 'Sending');
    try {
      const answer = await ask(path, sound, [], abort.signal);
      if (!answer.ok) {
        this.status.say(await answer.text(), true);
        return null;
      }
      for await (const line of lines(answer)) {
        if (line.before) this.status.say(`Waiting: ${line.before} before you`);
        if (line.now) this.status.tell(line.done, line.of, line.now[0].toUpperCase() + line.now.slice(1));
        if (line.answer) return line.answer;
        if (line.refused) {
          this.status.say(line.refused, true);
          return null;
        }
      }
    } catch (error) { /* it cannot be reached, or another question came */ }
    if (!abort.signal.aborted) this.status.say(UNREACHED, true);
    return null;
  }

  stop() {
    this.abort?.abort();
  }
}

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n');
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

// A file of the examples; null, and said so, if it is not to be had.
async function example(name, status) {
  try {
    const answer = await fetch(name);
    if (answer.ok) return await answer.blob();
  } catch (error) { /* it cannot be reached */ }
  status.say(UNREACHED, true);
  return null;
}

// Sound as it comes, from the microphone or of the example, until it is closed.
class Hearing {
  constructor(voice, example) {
    Object.assign(this, {voice, example, pieces: [], unsent: [], formed: [], count: 0, isOver: false});
    this.visit = [...crypto.getRandomValues(new Uint8Array(16))].map(x => x.toString(16).padStart(2, '0')).join('');
  }

  // Whatever is waited for here, it may have been closed meanwhile.
  async begin() {
    try {
      const context = this.context = new AudioContext();
      await context.audioWorklet.addModule(new URL('capture.js', document.baseURI));
      await context.resume();
      if (this.isOver) return;
      const source = this.example ? await this.play(context) : await this.microphone(context);
      if (!source) return;
      const capture = new AudioWorkletNode(context, 'capture');
      const analyser = new AnalyserNode(context, {fftSize: 1024, smoothingTimeConstant: 0});
      source.connect(capture).connect(new GainNode(context, {gain: 0})).connect(context.destination);
      source.connect(analyser);
      this.rate = context.sampleRate;
      this.most = Math.min(MAX_SECONDS * this.rate, MAX_MB * 2 ** 19 - 10_000);  // so that it can be sent as a file
      capture.port.onmessage = ({data}) => this.take(data);
      this.voice.begun();
      this.tell();
      this.draw(analyser);
      source.start?.();
    } finally {
      if (this.isOver) this.close();
    }
  }

  tell() {
    this.voice.status.say(this.example ? 'Listening to synthetic speech' : 'Speak now, a few sentences');
  }

  async microphone(context) {
    this.voice.status.say('Waiting for the microphone: the browser may ask whether it may be used');
    // What browsers do to speech so that people understand it better, the model was not trained with.
    const plain = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};
    this.stream = await navigator.mediaDevices.getUserMedia({audio: plain});
    for (const track of this.stream.getTracks()) track.onended = () => this.isOver || this.voice.stop();
    return this.isOver ? null : new MediaStreamAudioSourceNode(context, {mediaStream: this.stream});
  }

  async play(context) {
    const buffer = await context.decodeAudioData(await this.example.arrayBuffer());
    if (this.isOver) return null;
    const source = new AudioBufferSourceNode(context, {buffer});
    source.connect(context.destination);
    source.onended = () => this.isOver || this.voice.hear(this.example, this.formed);
    return source;
  }

  take(piece) {
    if (this.isOver) return;
    this.pieces.push(piece);
    this.unsent.push(piece);
    this.count += piece.length;
    if (this.count >= this.most) this.voice.stop();
    else this.send();
  }

  // Send what is new, one request after the other, and show the face that comes back.
  async send() {
    const n = this.unsent.reduce((sum, piece) => sum + piece.length, 0);
    if (this.isSending || n < PIECE_SECONDS * this.rate) return;
    this.isSending = true;
    let face = null, problem = UNREACHED;
    try {
      const answer = await ask('live', new Blob(this.unsent.splice(0)), [['visit', this.visit], ['rate', this.rate]]);
      if (answer.ok) face = await answer.json();
      else problem = await answer.text();
    } catch (error) { /* it cannot be reached */ }
    this.isSending = false;
    if (this.isOver) return;
    if (!face) this.voice.status.say(problem, true);
    else if (this.hasFailed) this.tell();
    this.hasFailed = !face;
    if (face?.face) {
      this.formed.push(face.embedding);
      this.voice.face.show(face);
    }
  }

  close() {
    this.isOver = true;
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.context?.close();
    this.context = null;
  }

  // The spectrogram runs from the right to the left, up to 8 kHz.
  draw(analyser) {
    const canvas = one('canvas', this.voice.root), context = canvas.getContext('2d');
    const {width, height} = canvas;
    const levels = new Float32Array(analyser.frequencyBinCount);
    const bins = Math.min(levels.length, 8000 / (this.rate / 2) * levels.length);
    [canvas.hidden, one('img.sound', this.voice.root).hidden] = [false, true];
    context.fillStyle = COLOURS[0];
    context.fillRect(0, 0, width, height);
    const step = () => {
      if (this.isOver) return;
      analyser.getFloatFrequencyData(levels);
      context.drawImage(canvas, -2, 0);
      for (let y = 0; y < height; y++) {
        const level = (levels[Math.floor(y / height * bins)] + 100) / 70;  // -100 to -30 dB
        context.fillStyle = COLOURS[Math.max(0, Math.min(COLOURS.length - 1, Math.floor(level * COLOURS.length)))];
        context.fillRect(width - 2, height - 1 - y, 2, 1);
      }
      requestAnimationFrame(step);
    };
    step();
  }
}

// Someone who is heard: by the microphone, an example, or a file. `begun` is called when a face is
// going to form anew, `answered` with the answer to a whole recording, and the embeddings before.
class Voice {
  static heard = null;  // the one who was heard last: there is one at a time

  constructor(root, face, begun, answered) {
    Object.assign(this, {root, face, begun, answered, hearing: null});
    this.status = new Status(root);
    this.question = new Question(this.status);
    this.button = one('.record', root);
    this.button.onclick = () => this.hearing ? this.stop() : this.listen();
    one('.example', root).onclick = async () => {
      const sound = await example('example.wav', this.status);
      if (sound) this.listen(sound);
    };
    takeFiles(root, file => this.hear(file));
  }

  // Listen until the button is pressed again, or the example is over.
  async listen(example = null) {
    this.end();
    Voice.heard?.stop();
    Voice.heard = this;
    this.question.stop();
    const hearing = this.hearing = new Hearing(this, example);
    this.button.textContent = 'Stop';
    try {
      await hearing.begin();
    } catch (error) {
      if (hearing.isOver) return;
      this.end();
      if (example) this.hear(example);  // it needs no microphone, and can be answered unheard
      else this.status.say(`${unheard(error)} A file can be chosen instead.`, true);
    }
  }

  // End listening; what was heard, or null.
  end() {
    const {hearing} = this;
    hearing?.close();
    this.hearing = null;
    this.button.textContent = 'Record';
    return hearing;
  }

  // End listening, and have what was heard answered.
  stop() {
    const hearing = this.end();
    if (hearing?.count) this.hear(wav(hearing.pieces, hearing.rate), hearing.formed);
    else if (hearing) this.status.say('Nothing was heard yet.');
  }

  // Give a recording, whole: its face has the last word.
  async hear(sound, formed = []) {
    this.end();
    const answer = await this.question.ask('voice', sound);
    if (!answer) return;
    const text = answer.remarks.length ? ` ${sentences(answer.remarks)}` : '';
    const pitch = answer.voice.pitch_hz ? ` Its pitch is about ${Math.round(answer.voice.pitch_hz)} Hz.` : '';
    const short = answer.heard < answer.clip ? ` It is shorter than the ${seconds(answer.clip)} that the model listens to at once, so it was heard again and again until those were full.` : '';
    this.status.say(`The model heard ${seconds(answer.heard)} of speech.${pitch}${short}${text}`);
    const picture = one('img.sound', this.root);
    [picture.src, picture.hidden] = [answer.sound, false];
    picture.alt = `Spectrogram of the speech, ${seconds(answer.heard)} long: time to the right, pitch upwards, light where it is loud`;
    one('canvas', this.root).hidden = true;
    this.answered(answer, formed);
  }
}

// Why a microphone cannot be heard.
function unheard(error) {
  if (!isSecureContext) return 'Nothing can be recorded here: browsers record over https, or on this machine itself.';
  return {NotAllowedError: 'The microphone may not be used: allow it in the browser.',
    NotFoundError: 'There is no microphone.',
    NotReadableError: 'The microphone cannot be heard: another program may have it.',
    AbortError: UNREACHED}[error.name] ?? `The microphone cannot be heard (${error.message}).`;
}

// From black over violet and orange to yellow.
const COLOURS = Array.from({length: 64}, (_, k) => {
  const stops = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
  const place = k / 63 * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
  return `rgb(${stops[low].map((c, i) => Math.round(c + (place - low) * (stops[low + 1][i] - c))).join()})`;
});
const seconds = n => n === 1 ? '1 second' : `${n.toFixed(1).replace('.0', '')} seconds`;
const sentences = remarks => remarks.map(text => `Note: ${text}.`).join(' ');

// Pieces of 16 bits as a WAV file.
function wav(pieces, rate) {
  const bytes = 2 * pieces.reduce((sum, piece) => sum + piece.length, 0);
  const head = new DataView(new ArrayBuffer(44));
  const put = (place, text) => [...text].forEach((c, k) => head.setUint8(place + k, c.charCodeAt(0)));
  put(0, 'RIFF'), head.setUint32(4, 36 + bytes, true), put(8, 'WAVEfmt ');
  head.setUint32(16, 16, true), head.setUint16(20, 1, true), head.setUint16(22, 1, true);
  head.setUint32(24, rate, true), head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true), head.setUint16(34, 16, true);
  put(36, 'data'), head.setUint32(40, bytes, true);
  return new Blob([head, ...pieces], {type: 'audio/wav'});
}

// A file may be chosen, or dropped.
function takeFiles(root, take) {
  const field = one('input[type=file]', root);
  field.onchange = () => {
    if (field.files.length) take(field.files[0]);
    field.value = '';  // so that the same may be chosen again
  };
  root.ondragover = event => event.preventDefault();
  root.ondrop = event => {
    event.preventDefault();
    if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  };
}

// Sliders that move a face's embedding, and ways to save what is seen.
class Explore {
  constructor(root, face) {
    Object.assign(this, {root, face});
    this.close();
  }

  close() {
    this.sliders = [];
    this.root.replaceChildren();
  }

  // `axes` are [name, the ends' names, what a place from -1 to 1 is called, the steps to the ends];
  // `faces` are [name, embedding] of a sheet, and `formed` embeddings of an animation.
  open({base, axes, reset, faces, formed, beginnings = [], from = -1}) {
    Object.assign(this, {base, reset, faces, formed});
    this.sliders = axes.map(([name, [low, high], called, steps]) => {
      const input = made('input', {type: 'range', min: from, max: 1, step: 0.05, value: 0});
      const output = made('output'), ends = made('span', {className: 'ends'}, made('span', {}, low), made('span', {}, high));
      ends.setAttribute('aria-hidden', true);  // which the slider says of its place
      const told = () => {
        const t = Number(input.value);
        output.textContent = t ? `${Math.round(100 * Math.abs(t))} %` : called(0);
        input.setAttribute('aria-valuetext', called(t));
      };
      input.setAttribute('aria-label', name);
      input.oninput = () => (told(), this.draw());
      told();
      return {row: made('div', {className: 'axis'}, made('span', {}, name), output, input, ends), input, told, steps};
    });
    const button = (text, press) => made('button', {type: 'button', textContent: text, onclick: press});
    this.said = made('p', {className: 'status'});
    this.said.setAttribute('role', 'status');
    this.root.replaceChildren(
      made('div', {className: 'title'}, made('h2', {textContent: 'Explore'}), button('Reset', () => this.back())),
      made('div', {className: 'axes'}, ...this.sliders.map(slider => slider.row)),
      ...(beginnings.length < 2 ? [] : [made('h2', {textContent: 'The more it hears'}), made('div', {className: 'row'},
        ...beginnings.map(([text, src]) => made('figure', {}, made('img', {src, alt: `Face after: ${text}`}), made('figcaption', {textContent: text}))))]),
      made('div', {className: 'buttons'},
        button('Save the face', () => this.save('face', 'face.png', [this.place()])),
        ...(formed.length < 2 ? [] : [button('Save how it forms', () => this.save('animation', 'forming.webp', thinned(this.formed)))]),
        ...(faces.length < 2 ? [] : [button('Save a sheet', () => this.save('sheet', 'faces.png', this.faces.map(f => f[1]), this.faces.map(f => f[0])))])),
      this.said,
    );
  }

  isMoved() {
    return this.sliders.some(({input}) => Number(input.value));
  }

  place() {
    return moved(this.base, this.sliders.map(({input, steps}) => {
      const t = Number(input.value);
      return [Math.abs(t), steps[t < 0 ? 0 : 1]];
    }));
  }

  // Draw the newest place, one request after the other.
  async draw() {
    this.isStale = true;
    if (this.isDrawing) return;
    this.isDrawing = true;
    while (this.isStale) {
      this.isStale = false;
      const {base} = this;
      const face = this.isMoved() && await this.get('json', 'draw', [this.place()]);
      if (base !== this.base) continue;  // it was of another
      if (!this.isMoved()) this.back();
      else if (face) this.face.show(face);
    }
    this.isDrawing = false;
  }

  // Ask for an answer that is read as `kind`; null, and said why, if there is none.
  async get(kind, path, vectors, query = []) {
    let text = UNREACHED;
    try {
      const answer = await ask(path, joined(vectors), query);
      if (answer.ok) {
        const content = await answer[kind]();
        this.say('');
        return content;
      }
      text = await answer.text();
    } catch (error) { /* it cannot be reached */ }
    this.say(text, true);
    return null;
  }

  say(text, wrong = false) {
    this.said.textContent = text;
    this.said.classList.toggle('wrong', wrong);
  }

  back() {
    if (!this.sliders.length) return;
    for (const slider of this.sliders) {
      slider.input.value = 0;
      slider.told();
    }
    this.face.show(this.reset);
  }

  async save(form, name, vectors, names = []) {
    let href = this.reset.face;  // the very face of the voice or the photo, and says so
    if (form !== 'face' || this.isMoved()) {
      this.say('Drawing what is to be saved');
      const content = await this.get('blob', 'save', vectors, [['as', form], ...names.map(text => ['name', text])]);
      if (!content) return;
      href = URL.createObjectURL(content);
    }
    made('a', {href, download: name}).click();
    if (href.startsWith('blob:')) setTimeout(() => URL.revokeObjectURL(href), 60_000);
  }
}

const percent = ends => t => t ? `${Math.round(100 * Math.abs(t))} % of the way ${ends[t < 0 ? 0 : 1]}` : 'as it was';
const asAxes = axes => axes.map(({name, ends, steps}) => [name, ends, percent(ends.map(end => `to ${end}`)), steps.map(vector)]);

function begin() {
  const face = new Face(one('#voice-face')), explore = new Explore(one('#voice-explore'), face);
  new Voice(one('#voice'), face, () => explore.close(), (answer, formed) => {
    face.show(answer);
    const firsts = answer.beginnings.map(first => [seconds(first.seconds), first]);
    const every = [...firsts, [`All ${seconds(answer.heard)}`, answer]];
    explore.open({
      base: vector(answer.embedding),
      axes: asAxes(answer.axes),
      reset: answer,
      faces: every.map(([name, one]) => [name, vector(one.embedding)]),
      formed: [...(formed.length ? formed : firsts.map(([, one]) => one.embedding)), answer.embedding].map(vector),
      beginnings: every.map(([name, one]) => [name, one.face]),
    });
  });

  const between = new Face(one('#voices-face')), way = new Explore(one('#voices-explore'), between), both = {};
  for (const name of ['first', 'second'])
    new Voice(one(`#${name}`), between, () => (delete both[name], way.close()), answer => {
      both[name] = answer;
      if (!both.first || !both.second) {
        if (!Voice.heard?.hearing) between.show(answer);  // else that of the other one forms
        return;
      }
      const [a, b] = [both.first, both.second].map(answer => vector(answer.embedding));
      const step = b.map((x, k) => x - a[k]);
      between.show(both.first);
      way.open({
        base: a,
        axes: [['From the first voice to the second', ['the first voice', 'the second voice'], t => t === 0 ? 'the first voice' : t === 1 ? 'the second voice' : `${Math.round(100 * t)} % of the way to the second voice`, [step, step]]],
        reset: both.first,
        faces: [['The first voice', a], ['Half-way', a.map((x, k) => x + step[k] / 2)], ['The second voice', b]],
        formed: [a, b],
        from: 0,
      });
    });

  const drawn = new Face(one('#photo-face')), change = new Explore(one('#photo-explore'), drawn), root = one('#photo');
  const status = new Status(root), question = new Question(status);
  const show = async photo => {
    const answer = await question.ask('photo', photo);
    if (!answer) return;
    const picture = one('img.photo', root);
    [picture.src, picture.alt, picture.hidden] = [answer.photo, 'The photo, framed', false];
    status.say(`The face was drawn from a row of ${vector(answer.embedding).length} numbers. ${sentences(answer.remarks)}`);
    drawn.show(answer);
    const own = vector(answer.embedding);
    change.open({base: own, axes: asAxes(answer.axes), reset: answer, faces: [['From the photo', own]], formed: [own]});
  };
  takeFiles(root, show);
  one('.example', root).onclick = async () => {
    const photo = await example('example.png', status);
    if (photo) show(photo);
  };

  const tabs = all('[role=tab]');
  const choose = tab => {
    if (tab.getAttribute('aria-selected') === 'true') return;
    Voice.heard?.stop();  // nobody is heard out of sight
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute('aria-selected', chosen);
      other.tabIndex = chosen ? 0 : -1;
      one(`#${other.getAttribute('aria-controls')}`).hidden = !chosen;
    }
  };
  tabs.forEach((tab, k) => {
    tab.onclick = () => choose(tab);
    tab.onkeydown = event => {
      const to = {ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: tabs.length - 1}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs.at(to % tabs.length);
      choose(next);
      next.focus();
    };
  });

  const models = one('#model');
  if (models) models.onchange = () => location.assign(`?${new URLSearchParams({model: model()})}`);

  one('#open-about').onclick = async () => {
    one('#about').showModal();
    const card = one('#card');
    try {
      const answer = await fetch(`about?${new URLSearchParams({model: model()})}`);
      const text = await answer.text();
      if (answer.ok) card.innerHTML = text;  // which the server has escaped
      else card.textContent = text;
    } catch (error) {
      card.textContent = UNREACHED;
    }
  };

  // A double click is one press, and so is a key that is held; a file that misses is not opened.
  const press = event => event.target.closest?.('button, [role=tab]');
  document.addEventListener('click', event => {
    if (event.detail > 1 && press(event)) event.stopPropagation();
  }, true);
  document.addEventListener('keydown', event => {
    if (event.repeat && event.key === 'Enter' && press(event)) event.preventDefault();
  });
  document.ondragover = document.ondrop = event => event.preventDefault();
}

begin();
