// An HTTP server that is as lenient as Node.js can be, and logs every request that it understood, one JSON a line.
// Arguments: port, log file.
'use strict';

const fs = require('node:fs');
const http = require('node:http');

const [port, file] = process.argv.slice(2);
const log = (entry) => fs.appendFileSync(file, JSON.stringify(entry) + '\n');

function understood(request, body) {
  return { method: request.method, target: request.url, host: request.headers.host ?? '', body };
}

const server = http.createServer({ insecureHTTPParser: true, requireHostHeader: false, joinDuplicateHeaders: true });
server.keepAliveTimeout = 0;
server.on('request', (request, response) => {
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('end', () => {
    log(understood(request, Buffer.concat(pieces).toString('latin1')));
    response.end(`${request.method} ${request.url}`);
  });
});
for (const event of ['upgrade', 'connect']) {
  server.on(event, (request, socket) => {
    log({ ...understood(request, ''), event });
    socket.on('error', () => {});
    if (request.headers.upgrade === 'switch') {
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: switch\r\n\r\n');
      socket.resume();
      socket.on('end', () => socket.end());
    } else {
      socket.end('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno');
    }
  });
}
server.on('clientError', (error, socket) => {
  if (error.code !== 'ECONNRESET') log({ method: '', target: error.code, host: '', body: '' });
  socket.destroy();
});
server.listen(Number(port), '0.0.0.0', () => log({ ready: true }));
