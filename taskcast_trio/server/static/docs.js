// Loads the document itself: the viewer appends a relative server URL to the origin instead of resolving it
// against the document (OpenAPI 3.1, Server Object), which fails where the server is mounted under a prefix.
const viewer = document.querySelector("rapi-doc");
const source = new URL(viewer.dataset.spec, document.baseURI);

try {
  const answer = await fetch(source);
  if (!answer.ok) throw new Error(`${source} answered ${answer.status}`);
  const spec = await answer.json();
  spec.servers = spec.servers.map((server) => ({
    ...server,
    url: new URL(server.url, source).href.replace(/\/$/, ""),
  }));
  await customElements.whenDefined("rapi-doc");
  await viewer.loadSpec(spec);
} catch (error) {
  document.body.textContent = `The API document could not be loaded: ${error.message}`;
}
