import { FileServer } from '../kit/file-server.js';

/** Serves a folder by itself, so that a test may wait for other programs; says its port. */
const server = await FileServer.start(process.argv[2] ?? '.');
process.stdout.write(`${server.port}\n`);
