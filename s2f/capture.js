// Hands on what is heard, 16 bits, every 50 ms: of the mean of the channels.
registerProcessor('capture', class extends AudioWorkletProcessor {
  piece = new Int16Array(Math.round(sampleRate / 20));
  filled = 0;

  process([channels]) {
    for (let k = 0; k < (channels[0]?.length ?? 0); k++) {
      const sample = channels.reduce((sum, channel) => sum + channel[k], 0) / channels.length;
      this.piece[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(sample * 32768)));
      if (this.filled === this.piece.length) {
        this.port.postMessage(this.piece);  // a copy
        this.filled = 0;
      }
    }
    return true;
  }
});
