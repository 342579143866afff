// Browsers start no worker for a page that was opened as a file: what searches runs in a frame then.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = this.inside.document.createElement("script");
      script.src = url;
      this.ready = new Promise((loaded) => script.addEventListener("load", loaded));
      this.inside.document.body.append(script);
    }

    postMessage(data) {
      const Message = this.inside.MessageEvent;
      this.ready.then(() => this.inside.dispatchEvent(new Message("message", { data })));
    }
  };
}
