import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Host } from '../../host/host.js';
import { WebServer, type WebOptions } from '../../web/server.js';
import { AllowedFiles } from '../web/allowed-files.js';
import { readPage } from '../web/page-files.js';
import { programsParts } from '../web/setup.js';
import { type DemoDaemon, DEVICE, QMP_SOCKET } from './session.js';
import type { Show } from './show.js';

const POINTS = ['monday', 'tuesday', 'wednesday'];
/** Until a point has something of its own. */
const DAY_MS = 700;

/** Points in time of the demo's disk, with what the guest writes between them. */
export async function makePoints(host: Host, daemon: DemoDaemon, show: Show): Promise<void> {
  for (const name of POINTS) {
    await host.clock.sleep(DAY_MS);
    await daemon.execute('x-point-create', { name });
  }
  show.line(`Its disk has the points in time ${POINTS.join(', ')}.`);
}

/** Serves the page of the demo's disk until `isOver`, and says where it is. Errors: those of listening. */
export async function showPage(host: Host, folder: string, show: Show, isOver: Promise<void>): Promise<void> {
  const servers: WebOptions['servers'] = [
    { name: DEVICE, address: { type: 'unix', path: join(folder, QMP_SOCKET) } },
  ];
  const server = await WebServer.start({
    ...{ host, servers, page: readPage(), isReadOnly: false, hasConsole: true },
    address: { type: 'inet', host: '127.0.0.1', port: 0 },
    ...programsParts({ host, files: new AllowedFiles([folder]), servers, folder }),
  });
  show.title('open this in a browser; the address is good once');
  show.line(`\n    ${server.url}\n`);
  show.line(
    'The guest writes on. Press "delete" beside a point in time: what will happen is told, and then done.',
  );
  show.line('Ctrl-C ends it all, and looks whether anything was lost.');
  await isOver;
  await server.close();
}

/** What somebody may have made by clicking, too. */
export function imagesIn(folder: string): string[] {
  return readdirSync(folder)
    .filter((name) => name.endsWith('.qcow2'))
    .sort();
}
