// Calls /spliceway.test.Who/Who through an xds:/// channel, as told on standard input; see tests/clients/grpc_xds.py.
'use strict';

const grpc = require('@grpc/grpc-js');
const xds = require('@grpc/grpc-js-xds');
const readline = require('node:readline');

xds.register();

const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure());
const same = (bytes) => bytes;
let running = null;

function call(seconds) {
  return new Promise((resolve) => {
    const deadline = Date.now() + seconds * 1000;
    client.makeUnaryRequest('/spliceway.test.Who/Who', same, same, Buffer.alloc(0), { deadline }, (error, answer) => {
      resolve(error ? { code: grpc.status[error.code], details: error.details } : { answer: answer.toString() });
    });
  });
}

async function many(state) {
  while (!state.stop) {
    const result = await call(10);
    if (result.code) state.failures.push(result);
    else state.answers[result.answer] = (state.answers[result.answer] || 0) + 1;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

async function obey(line) {
  const [word, argument] = line.split(' ');
  if (word === 'call') return call(Number(argument || 10));
  if (word === 'start') {
    running = { stop: false, answers: {}, failures: [] };
    running.done = many(running);
    return {};
  }
  if (word === 'count') return { answers: running.answers, failures: running.failures };
  running.stop = true;
  await running.done;
  return { answers: running.answers, failures: running.failures };
}

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await obey(line)));
  }
  process.exit(0);
})();
