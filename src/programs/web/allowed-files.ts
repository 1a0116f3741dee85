import { lstatSync, realpathSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, relative } from 'node:path';
import { BlockError, toBlockError } from '../../base/error.js';

/** Files that a page may name: those in folders that `--allow` gave, links followed. */
export class AllowedFiles {
  readonly #folders: readonly string[];

  /** Errors: not-found for a folder that is none. */
  constructor(folders: readonly string[]) {
    this.#folders = folders.map((folder) => {
      try {
        return realpathSync(folder);
      } catch (error) {
        throw new BlockError('not-found', `--allow ${folder}: no such folder`, { cause: error });
      }
    });
  }

  /** Errors: permission, where no folder was given. */
  assertAny(): void {
    if (this.first === undefined)
      throw new BlockError('permission', 'no file may be named: start "livedisk web" with --allow FOLDER');
  }

  get first(): string | undefined {
    return this.#folders[0];
  }

  /** Whether files in a folder may be named, links followed. */
  hasFolder(path: string): boolean {
    const folder = realFolder(path);
    return folder !== undefined && this.#folders.some((allowed) => contains(allowed, folder));
  }

  /** The whole path of `name`, which is one, or is in the first folder. Errors: permission. */
  find(name: string): string {
    this.assertAny();
    const first = this.first ?? '';
    const path = isAbsolute(name) ? name : join(first, name);
    const last = basename(path);
    const folder = realFolder(dirname(path));
    const isInside = this.#folders.some((allowed) => folder !== undefined && contains(allowed, folder));
    if (!isInside || folder === undefined || last === '' || last === '..' || name.includes('\0'))
      throw new BlockError(
        'permission',
        `'${name}' is not in a folder that --allow gave: ${this.#folders.join(', ')}`,
      );
    const whole = join(folder, last);
    // A link that is there already may lead out, to what there is not, too.
    const isThere = somethingAt(whole, name);
    const target = isThere ? realFolder(whole) : whole;
    if (!this.#folders.some((allowed) => target !== undefined && contains(allowed, dirname(target))))
      throw new BlockError('permission', `'${name}' leads out of the folders that --allow gave`);
    return whole;
  }

  /** The same, of a file that there is not: servers overwrite what they are to make. Errors: exists, too. */
  findNew(name: string): string {
    const path = this.find(name);
    if (somethingAt(path, name))
      throw new BlockError('exists', `there is a file '${path}' already`, {
        hint: 'Choose another name: it would be overwritten',
      });
    return path;
  }
}

/** Errors: those of looking, as of a name that is too long. */
function somethingAt(path: string, name: string): boolean {
  try {
    return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch (error) {
    throw toBlockError(error, `'${name}' cannot be looked at`);
  }
}

function realFolder(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}

function contains(folder: string, path: string): boolean {
  const way = relative(folder, path);
  return way === '' || (!way.startsWith('..') && !isAbsolute(way));
}
