import { BlockError } from '../base/error.js';
import { MAX_FILENAME_BYTES } from '../base/limits.js';
import { formatJson } from '../wire/qmp/json-format.js';
import type { Json } from './driver.js';
import { folderOf, hasProtocol } from './filename.js';
import type { Node } from './node.js';

/** The two ways to say what a node is. */
interface NodeName {
  /** A name that opens the same by itself, as its format; undefined: there is none. */
  plain: string | undefined;
  /** The options that open the same, as JSON; of a long one only as much as a name can hold. */
  json: string;
  /** What stands in place of `json` where the node itself is named, not a part of another one's name. */
  own?: string;
}

/**
 * Full names of nodes: the plain filename where opening that gives the graph as it stands, else `json:{...}` with all
 * that makes the difference. What is read-only, cached or locked makes none. Names are kept, so an object lasts only
 * as long as the graph does not change.
 */
export class NodeNames {
  readonly #known = new Map<Node, NodeName>();
  readonly #ignoresBacking: boolean;
  readonly #showsFilters: boolean;

  /**
   * `ignoresBacking`: the images were opened to look at their headers, so nobody chose to leave backing files out.
   * `showsFilters`: in JSON, filters of jobs that a user has named are there, as QEMU's queries show them; they cannot be
   * opened again.
   */
  constructor({ ignoresBacking = false, showsFilters = false } = {}) {
    this.#ignoresBacking = ignoresBacking;
    this.#showsFilters = showsFilters;
  }

  /** At most MAX_FILENAME_BYTES long; one that was longer ends in "...". */
  of(node: Node): string {
    const { plain, json, own = json } = this.#nameOf(node);
    return plain ?? cut(`json:${own}`);
  }

  /** Children first and without recursion: a chain may have thousands of layers. */
  #nameOf(node: Node): NodeName {
    const path = [node];
    for (let at = path.at(-1); at; at = path.at(-1)) {
      if (!this.#known.has(at)) {
        const missing = [...at.children.values()].find((edge) => !this.#known.has(edge.node));
        if (missing) {
          path.push(missing.node);
          continue;
        }
        this.#known.set(at, this.#compose(at));
      }
      path.pop();
    }
    return this.#childName(node);
  }

  /** Of a node whose name is known. */
  #childName(node: Node): NodeName {
    return this.#known.get(node) ?? { plain: node.name, json: '{}' };
  }

  #compose(node: Node): NodeName {
    const { driver, filtered } = node;
    if (filtered && isJobFilter(node) && !isNamedWhole(node)) {
      const name = this.#childName(filtered.node);
      if (node.implicit || !this.#showsFilters) return name;
      return { ...name, json: jobFilterJson(node, name.json), own: name.own ?? name.json };
    }
    const identity = identityOf(node);
    const isOverridden = !this.#ignoresBacking && this.isBackingOverridden(node);
    const members: Array<[string, string]> = [['driver', formatJson(driver.name)], ...identity];
    const lists = node.driver.options.children.filter(({ isList }) => isList === true);
    const listed = (role: string): boolean => lists.some((list) => role.startsWith(`${list.role}.`));
    for (const [role, edge] of node.children) {
      if (role !== 'backing' && !listed(role)) members.push([role, this.#childName(edge.node).json]);
    }
    for (const { role } of lists) {
      const items = [...node.children].filter(([item]) => item.startsWith(`${role}.`));
      members.push([role, `[${items.map(([, edge]) => this.#childName(edge.node).json).join(', ')}]`]);
    }
    if (isOverridden) {
      const backing = node.children.get('backing');
      members.push(['backing', backing ? this.#childName(backing.node).json : 'null']);
    }
    const json = object(members);
    if (driver.filename) {
      const image = filtered && this.#childName(filtered.node).plain;
      const childName = (role: string): string | undefined => {
        const child = node.children.get(role);
        return child && this.#childName(child.node).plain;
      };
      return { plain: driver.filename(node.options, image, childName), json };
    }
    const file = node.children.get('file')?.node;
    const isPlain =
      identity.length === 0 && !isOverridden && !isNamedWhole(node) && file?.driver.filename !== undefined;
    return { plain: isPlain ? this.#childName(file).plain : undefined, json };
  }

  /** Whether a node has another backing file, or none, than it gets when it is opened by name. */
  isBackingOverridden(node: Node): boolean {
    const backing = node.children.get('backing')?.node;
    const { automaticBacking, backingFormat } = node;
    if (!backing) return automaticBacking !== undefined;
    if (this.of(backing) !== automaticBacking) return true;
    // A protocol shows what raw shows.
    const { driver } = backing.skipFilters();
    const isSaid = [driver.name, backing.driver.name].includes(backingFormat ?? driver.name);
    return driver.kind === 'format' && !isSaid;
  }
}

/** A filter that a job has put in: it shows its child and cannot be opened. */
export function isJobFilter({ driver }: Node): boolean {
  return driver.isNamedAsChild === true;
}

/** As a part of the name of what stands on it, one that the user has named shows itself. */
function jobFilterJson({ driver }: Node, child: string): string {
  return object([
    ['driver', formatJson(driver.name)],
    [driver.shownChildRole ?? 'file', child],
  ]);
}

/** QEMU gives its job's filters the names of their children, except a stream's that the user has named. */
function isNamedWhole({ driver, implicit }: Node): boolean {
  return driver.isNamedWhole === true && !implicit;
}

/** The full name of one node, as the graph stands. */
export function fullFilename(node: Node): string {
  return new NodeNames().of(node);
}

/** A backing file name as the image of `node` says it, seen from where the image is. Errors: invalid. */
export function resolveBackingOf(node: Node, backingFilename: string): string {
  if (backingFilename.startsWith('/') || hasProtocol(backingFilename)) return backingFilename;
  const { storage } = node;
  const plain = fullFilename(storage);
  const { driver } = storage;
  const refusal = driver.folderRefusal?.(storage.options);
  if (refusal !== undefined) throw new BlockError('invalid', refusal, { path: plain });
  if (driver.hasFolders === true && !plain.startsWith('json:')) return folderOf(plain) + backingFilename;
  const name = driver.title ?? driver.name;
  throw new BlockError('invalid', `Cannot generate a base directory for ${name} nodes`, { path: plain });
}

/** Options that change what a node shows, with their JSON: nested ones under their dotted names. */
function identityOf({ driver, options }: Node): Array<[string, string]> {
  const found: Array<[string, string]> = [];
  const add = (key: string, value: Json): void => {
    if (typeof value !== 'object' || value === null) found.push([key, formatJson(value)]);
    else for (const [member, inner] of Object.entries(value)) add(`${key}.${member}`, inner);
  };
  for (const key of driver.identityOptions ?? []) {
    const value = options[key];
    if (value !== undefined) add(key, value);
  }
  return found;
}

/** Members in the order in which QEMU writes them (seen by letting it repeat an object); others first. */
const MEMBER_ORDER = [
  ...['password-secret', 'url', 'cookie-secret'],
  ...['inject-error.N.state', 'opt-write-zero', 'inject-error.N.immediately', 'read-zeroes'],
  ...['set-state.N.event', 'server.path', 'set-state.N.state', 'server.port', 'server.host'],
  ...['inject-error.N.once', 'max-write-zero', 'offset', 'image', 'backing', 'max-transfer'],
  ...['read-pattern', 'log', 'log-sector-size', 'children', 'driver'],
  ...['rewrite-corrupted', 'blkverify', 'vote-threshold'],
  ...['inject-error.N.iotype', 'filename', 'size', 'set-state.N.new_state', 'inject-error.N.errno'],
  ...['inject-error.N.event', 'export', 'server.type', 'opt-discard', 'inject-error.N.sector', 'file'],
  ...['max-discard', 'align', 'key-secret', 'username', 'sslverify', 'cookie'],
];

function object(members: ReadonlyArray<readonly [string, string]>): string {
  const place = ([key]: readonly [string, string]): number =>
    MEMBER_ORDER.indexOf(key.replace(/\.\d+\./, '.N.'));
  const ordered = [...members].sort((a, b) => place(a) - place(b));
  const text = ordered.map(([key, json]) => `${formatJson(key)}: ${json}`).join(', ');
  return `{${text}}`.slice(0, MAX_FILENAME_BYTES + 1);
}

/** JSON is ASCII. */
function cut(name: string): string {
  return name.length > MAX_FILENAME_BYTES ? `${name.slice(0, MAX_FILENAME_BYTES - 3)}...` : name;
}
