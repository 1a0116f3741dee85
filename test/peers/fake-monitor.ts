import { createServer, type Server, type Socket } from 'node:net';
import type { TestContext } from 'node:test';

/** Answers of a server's queries, by command; a `Refusal` is an error. */
export type Answers = Readonly<Record<string, unknown>>;

/** Why a command is refused. */
export class Refusal {
  readonly desc: string;

  constructor(desc: string) {
    this.desc = desc;
  }
}

/** A QMP server that answers what it is given to answer, and has no other commands. */
export async function fakeMonitor(t: TestContext, path: string, answers: Answers): Promise<Server> {
  const server = createServer((socket) => serve(socket, answers));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  t.after(() => server.close());
  return server;
}

function serve(socket: Socket, answers: Answers): void {
  let text = '';
  const send = (message: object): void => void socket.write(`${JSON.stringify(message)}\n`);
  socket.on('error', () => undefined);
  socket.on('data', (chunk: Buffer) => {
    text += chunk.toString();
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n')) {
      const { execute, id } = JSON.parse(text.slice(0, end)) as { execute: string; id: number };
      text = text.slice(end + 1);
      const answer = execute === 'qmp_capabilities' ? {} : answers[execute];
      const missing = { class: 'CommandNotFound', desc: `The command ${execute} has not been found` };
      const error = answer instanceof Refusal ? { class: 'GenericError', desc: answer.desc } : missing;
      send(answer === undefined || answer instanceof Refusal ? { error, id } : { return: answer, id });
    }
  });
  const version = { qemu: { major: 10, minor: 0, micro: 0 }, package: '' };
  send({ QMP: { version, capabilities: [] } });
}

/** What a server tells of so many disks, each with a chain of so many layers: `DISK-LAYER`, base 0. */
export function manyDisks(chains: readonly number[]): Answers {
  const nodes: object[] = [];
  const vertices: object[] = [];
  const edges: object[] = [];
  const devices: object[] = [];
  let lastId = 0;
  for (const [disk, layers] of chains.entries()) {
    let below = 0;
    for (let layer = 0; layer < layers; layer++) {
      const name = `n${disk}-${layer}`;
      const vertex = ++lastId;
      vertices.push({ id: vertex, type: 'block-driver', name });
      const filename = `/images/${name}.qcow2`;
      const image = { filename, 'virtual-size': 2 ** 30, 'actual-size': 2 ** 20 };
      nodes.push({ 'node-name': name, drv: 'qcow2', ro: layer < layers - 1, file: filename, image });
      if (below > 0) edges.push({ parent: vertex, child: below, name: 'backing' });
      below = vertex;
    }
    const qdev = `/machine/peripheral/disk${disk}/virtio-backend`;
    const backend = ++lastId;
    vertices.push({ id: backend, type: 'block-backend', name: qdev });
    edges.push({ parent: backend, child: below, name: 'root' });
    devices.push({ device: '', qdev, inserted: { 'node-name': `n${disk}-${layers - 1}`, ro: false } });
  }
  return {
    'query-version': { qemu: { major: 10, minor: 0, micro: 0 }, package: '' },
    'query-status': { status: 'running' },
    'query-block': devices,
    'query-named-block-nodes': nodes,
    'x-debug-query-block-graph': { nodes: vertices, edges },
    'query-block-exports': [],
    'query-jobs': [],
    'query-block-jobs': [],
    'query-blockstats': [],
  };
}
