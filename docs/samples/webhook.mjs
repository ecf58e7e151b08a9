// Receives the webhooks of Jobmesh, with the package standardwebhooks.
//
//   node webhook.mjs <port> <secret>
//
// A delivery arrives at least once: remember its `webhook-id` if acting twice would do harm.
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const [port, secret] = process.argv.slice(2);
const webhook = new Webhook(secret);

const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  try {
    // Throws where the signature is not ours, or the time is five minutes off.
    const { type, data } = webhook.verify(Buffer.concat(chunks).toString(), request.headers);
    console.log(type, data.batchId);
    response.writeHead(204).end();
  } catch (error) {
    console.log("refused", error.message);
    response.writeHead(400).end();
  }
});
server.listen(Number(port), "127.0.0.1", () => console.log("listening"));
