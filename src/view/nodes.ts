import type { JsonObject, JsonValue } from '../schema/types.js';
import { type Answers, numberOf, objectOf, objectsOf, textOf } from './answers.js';
import type { Bitmap, Child, Image } from './model.js';

/** Drivers whose node shows another one, by QEMU's names: nothing else in an answer tells. */
const FILTERS = new Set([
  ...['blkdebug', 'blklogwrites', 'blkreplay', 'blkverify', 'commit_top', 'compress', 'copy-before-write'],
  ...['copy-on-read', 'mirror_top', 'preallocate', 'snapshot-access', 'throttle', 'backup-top'],
]);

/** What a node shows comes first among its children; other roles are its own business. */
const SHOWN_ROLES = ['backing', 'file', 'image', 'test'];
const GROUP_ROLE = /^children\.(\d+)$/;

/** A node of the server's graph, before it is known what of it is an image. */
export interface GraphNode {
  readonly name: string;
  readonly info: JsonObject;
  readonly children: readonly Child[];
}

/** Who is above a node that is no node: a device's or export's backend, a job. */
export interface GraphParent {
  readonly type: 'block-backend' | 'block-job';
  readonly name: string;
  readonly role: string;
  readonly child: string;
  readonly mayWrite: boolean;
}

export interface NodeGraph {
  readonly nodes: ReadonlyMap<string, GraphNode>;
  readonly parents: readonly GraphParent[];
}

/** Puts x-debug-query-block-graph and query-named-block-nodes together. */
export function readGraph(answers: Answers): NodeGraph {
  const graph = objectOf(answers['x-debug-query-block-graph']);
  const vertices = new Map(objectsOf(graph['nodes']).map((vertex) => [numberOf(vertex['id']), vertex]));
  const children = new Map<string, Child[]>();
  const parents: GraphParent[] = [];
  for (const edge of objectsOf(graph['edges'])) {
    const parent = vertices.get(numberOf(edge['parent']));
    const child = textOf(vertices.get(numberOf(edge['child']))?.['name']);
    if (!parent || child === undefined) continue;
    const name = textOf(parent['name']) ?? '';
    const role = textOf(edge['name']) ?? '';
    const type = parent['type'];
    if (type === 'block-driver') children.set(name, [...(children.get(name) ?? []), { role, id: child }]);
    else if (type === 'block-backend' || type === 'block-job') {
      const permissions = edge['perm'];
      const mayWrite = Array.isArray(permissions) && permissions.includes('write');
      parents.push({ type, name, role, child, mayWrite });
    }
  }
  const nodes = new Map<string, GraphNode>();
  for (const info of objectsOf(answers['query-named-block-nodes'])) {
    const name = textOf(info['node-name']);
    if (name !== undefined) nodes.set(name, { name, info, children: children.get(name) ?? [] });
  }
  return { nodes, parents };
}

/** The images of a graph; overlays, shares and warnings come later (`assemble`). */
export function readImages(graph: NodeGraph): Image[] {
  const stored = storageNodes(graph);
  const images = [...graph.nodes.values()].filter(({ name }) => !stored.has(name));
  return images.map((node) => toImage(node, graph, stored));
}

/** Nodes that only hold the bytes of one image: they have no children and one parent, which is no filter. */
function storageNodes({ nodes, parents }: NodeGraph): Set<string> {
  const users = new Map<string, Array<{ node: GraphNode; role: string }>>();
  for (const node of nodes.values())
    for (const { role, id } of node.children) users.set(id, [...(users.get(id) ?? []), { node, role }]);
  const usedByOthers = new Set(parents.map(({ child }) => child));
  const found = new Set<string>();
  for (const { name, children } of nodes.values()) {
    const [user, ...more] = users.get(name) ?? [];
    if (!user || more.length > 0 || children.length > 0 || usedByOthers.has(name)) continue;
    if (user.role !== 'backing' && kindOf(user.node) === 'image') found.add(name);
  }
  return found;
}

function kindOf({ info, children }: GraphNode): Image['kind'] {
  if (FILTERS.has(textOf(info['drv']) ?? '')) return 'filter';
  return children.some(({ role }) => GROUP_ROLE.test(role)) ? 'group' : 'image';
}

function toImage(node: GraphNode, { nodes }: NodeGraph, stored: ReadonlySet<string>): Image {
  const { name, info } = node;
  const image = objectOf(info['image']);
  const facts = objectOf(objectOf(image['format-specific'])['data']);
  const filename = textOf(image['filename']) ?? textOf(info['file']) ?? '';
  const driver = textOf(info['drv']) ?? '';
  const kind = kindOf(node);
  const isImplicit = name.startsWith('#');
  const storage = node.children.find(({ id }) => stored.has(id));
  const holder = objectOf(nodes.get(storage?.id ?? '')?.info);
  const allocatedBytes = numberOf(image['actual-size']);
  const clusterBytes = numberOf(image['cluster-size']);
  return {
    id: name,
    label: isImplicit ? (kind === 'image' ? baseName(filename) : driver) : name,
    kind,
    driver,
    filename,
    ...(storage && {
      storage: {
        id: storage.id,
        driver: textOf(holder['drv']) ?? '',
        filename: textOf(holder['file']) ?? '',
      },
    }),
    virtualBytes: numberOf(image['virtual-size']) ?? 0,
    ...(allocatedBytes !== undefined && kind === 'image' && { allocatedBytes }),
    ...(clusterBytes !== undefined && { clusterBytes }),
    isReadOnly: info['ro'] === true,
    isCorrupt: facts['corrupt'] === true,
    isEncrypted: info['encrypted'] === true || image['encrypted'] === true,
    isImplicit,
    bitmaps: objectsOf(info['dirty-bitmaps']).flatMap(toBitmap),
    snapshotNames: objectsOf(image['snapshots']).map((snapshot) => textOf(snapshot['name']) ?? ''),
    children: node.children
      .filter(({ id }) => !stored.has(id) && nodes.has(id))
      .sort((a, b) => rankOf(a.role) - rankOf(b.role)),
    overlays: [],
    warnings: [],
  };
}

/** A server tells the children of a group in another order once one has been exchanged. */
function rankOf(role: string): number {
  const rank = SHOWN_ROLES.indexOf(role);
  if (rank >= 0) return rank;
  const [, number = 0] = GROUP_ROLE.exec(role) ?? [];
  return SHOWN_ROLES.length + Number(number);
}

/** Only bitmaps with a name are anybody's but a job's. */
function toBitmap(info: JsonObject): Bitmap[] {
  const name = textOf(info['name']);
  if (name === undefined) return [];
  return [
    {
      name,
      granularityBytes: numberOf(info['granularity']) ?? 0,
      dirtyBytes: numberOf(info['count']) ?? 0,
      isRecording: info['recording'] === true,
      isPersistent: info['persistent'] === true,
      isBusy: info['busy'] === true,
      isInconsistent: info['inconsistent'] === true,
    },
  ];
}

/** The last part of a path or a URL; a `json:` name is asked for the names in it. */
export function baseName(filename: string): string {
  if (filename.startsWith('json:')) return jsonBaseName(filename);
  return /([^/]*)\/*$/.exec(filename)?.[1] || filename;
}

function jsonBaseName(filename: string): string {
  try {
    const inner = innerFilename(JSON.parse(filename.slice('json:'.length)) as JsonValue);
    return inner === undefined ? filename : baseName(inner);
  } catch {
    return filename;
  }
}

function innerFilename(value: JsonValue): string | undefined {
  const options = objectOf(value);
  const own = textOf(options['filename']) ?? textOf(options['file.filename']) ?? textOf(options['export']);
  if (own !== undefined) return own;
  const below = options['file'] ?? options['image'];
  return below === undefined ? undefined : innerFilename(below);
}
