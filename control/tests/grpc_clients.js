// A client of an `xds:///` target: for each line `COUNT [METADATA=VALUE]` on standard input makes that many calls, and prints how
// many each server got. Run as: node grpc_clients.js TARGET, with NODE_PATH at the folder of @grpc/grpc-js and @grpc/grpc-js-xds.
const grpc = require("@grpc/grpc-js");
const readline = require("node:readline");

require("@grpc/grpc-js-xds").register();

const bytes = (value) => value;
const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure());

function call(metadata) {
  return new Promise((resolve) => {
    const options = { deadline: Date.now() + 10_000, wait_for_ready: true };
    client.makeUnaryRequest("/torus.Echo/Name", bytes, bytes, Buffer.alloc(0), metadata, options, (error, answer) => {
      resolve(error ? error.message : answer.toString());
    });
  });
}

async function answer(line) {
  const [count, ...fields] = line.trim().split(/\s+/);
  const metadata = new grpc.Metadata();
  for (const field of fields) {
    const [name, value] = field.split("=");
    metadata.set(name, value);
  }
  const seen = {};
  for (let made = 0; made < Number(count); made++) {
    const name = await call(metadata);
    seen[name] = (seen[name] ?? 0) + 1;
  }
  console.log(JSON.stringify(seen));
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    await answer(line);
  }
  client.close();
  process.exit(0);
})();
