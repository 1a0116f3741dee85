import type { BlockBackend } from '../block/backend.js';
import type { Json } from '../block/driver.js';
import type { Edge } from '../block/edge.js';
import type { Node } from '../block/node.js';
import { permissionList } from '../block/permissions.js';
import { JobPlace } from '../jobs/job-graph.js';
import type { Parts } from './parts.js';

type JsonObject = { [key: string]: Json };

/** QAPI's XDbgBlockGraph: every backend, job and node with what each asks of the next. */
export function queryGraph({ graph, devices, drives }: Parts<'graph' | 'devices' | 'drives'>): JsonObject {
  const described = new GraphDescription();
  const names = new Map([...devices.values()].map(({ backend, qdevPath }) => [backend, qdevPath]));
  for (const { backend, id } of drives.values()) names.set(backend, id);
  const empty = [...names.keys()].filter((backend) => !graph.backends.has(backend));
  const backends = [...graph.backends, ...empty];
  for (const backend of backends)
    if (placeOf(backend) === undefined || isOfJobAlone(backend))
      described.add(backend, 'block-backend', names.get(backend) ?? '', [backend.root]);
  const jobs = new Set(backends.flatMap((backend) => placeOf(backend)?.job ?? []));
  for (const job of jobs) {
    const held = backends.filter((backend) => isHeld(backend) && placeOf(backend)?.job === job);
    described.add(job, 'block-job', job.id, held.map(({ root }) => root).reverse());
  }
  for (const node of graph.listed())
    described.add(node, 'block-driver', node.name, childrenOf(node).reverse());
  return described.result();
}

function placeOf({ owner }: BlockBackend): JobPlace | undefined {
  return owner instanceof JobPlace ? owner : undefined;
}

/** Through which a job reads or writes, apart from its filter. */
function isOfJobAlone(backend: BlockBackend): boolean {
  return backend.root?.role === 'root';
}

/** What a job's work is about, in a role of the job. */
function isHeld(backend: BlockBackend): boolean {
  const place = placeOf(backend);
  return place !== undefined && !isOfJobAlone(backend) && !place.filter.uses.has(backend);
}

/** Children of a node in the order in which they came; a job's filter uses more than the one that it shows. */
function childrenOf(node: Node): Edge[] {
  const own = [...node.children.values()];
  const more = [...node.uses].flatMap(({ root }) => root ?? []);
  return [...own, ...more.filter(({ role, node: used }) => node.children.get(role)?.node !== used)];
}

/** As QEMU describes a graph: what was found last comes first, and who is met first has the lowest number. */
class GraphDescription {
  readonly #ids = new Map<object, number>();
  readonly #nodes: JsonObject[] = [];
  readonly #edges: JsonObject[] = [];

  add(vertex: object, type: string, name: string, edges: ReadonlyArray<Edge | undefined>): void {
    const id = this.#idOf(vertex);
    this.#nodes.push({ id, type, name });
    for (const edge of edges) if (edge) this.#edges.push(this.#edgeInfo(id, edge));
  }

  result(): JsonObject {
    return { nodes: this.#nodes.reverse(), edges: this.#edges.reverse() };
  }

  #edgeInfo(parent: number, edge: Edge): JsonObject {
    return {
      parent,
      child: this.#idOf(edge.node),
      name: edge.shownRole,
      perm: permissionList(edge.perm).reverse(),
      'shared-perm': permissionList(edge.shared).reverse(),
    };
  }

  #idOf(vertex: object): number {
    const id = this.#ids.get(vertex) ?? this.#ids.size + 1;
    this.#ids.set(vertex, id);
    return id;
  }
}
