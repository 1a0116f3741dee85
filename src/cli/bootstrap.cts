// The program's entry. CommonJS, because the size of Node's thread pool must be set before anything uses the pool,
// and ES modules are loaded through it. Flushes and cold reads of several disks at once wait there.
process.env['UV_THREADPOOL_SIZE'] ??= '8';
const program: string = './program/main.js';
void import(program);
