// Loads and runs the compiled network that lies beside this file. It needs an engine with WebAssembly SIMD: browsers
// (Chrome 91, Firefox 89, Safari 16.4 and later), Node.js 16.4 and later.
//
//   import { load } from "./model.mjs";
//   const model = await load(wasm, weights);              // bytes of model.wasm and weights.bin (ArrayBuffer or Uint8Array)
//   const { y } = model.run({ x: new Float32Array(n) });  // y.data is a typed array, y.shape its shape
//
// In a browser: const bytes = async (url) => (await fetch(url)).arrayBuffer(). In Node.js: fs.readFileSync(path).
// Arrays are row-major. model.buckets says what goes in and comes out: [{inputs: [{name, dtype, shape}], outputs: [...]}], one
// entry for each set of input shapes that the model was built for; run(inputs, 1) runs the second.
// A module has one thread: where a page shall stay responsive, load it in a Worker.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, int16: Int16Array, int32: Int32Array, int64: BigInt64Array,
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array, bool: Uint8Array,
  float16: Uint16Array, bfloat16: Uint16Array, // as their bits
};

export async function load(wasm, weights) {
  const { instance } = await WebAssembly.instantiate(wasm, {});
  return new Model(instance.exports, new Uint8Array(weights.buffer ?? weights, weights.byteOffset ?? 0, weights.byteLength));
}

class Model {
  #functions;
  #model;
  #pointers;
  #shapePlace;

  constructor(functions, weights) {
    this.#functions = functions;
    const at = this.#allocate(weights.byteLength);
    new Uint8Array(functions.memory.buffer).set(weights, at);
    const place = this.#allocate(64);
    this.#check(functions.tc_create_from_memory(place, at, weights.byteLength, 1));
    this.#model = this.#view().getUint32(place, true);
    this.buckets = Array.from({ length: Number(functions.tc_n_buckets()) }, (_, b) => ({
      inputs: this.#tensors(b, functions.tc_n_inputs(), functions.tc_bucket_input),
      outputs: this.#tensors(b, functions.tc_n_outputs(), functions.tc_bucket_output),
    }));
    this.#pointers = this.buckets.map(() => null);
  }

  // Compute: typed arrays by name -> {data, shape} by name, which are the caller's own.
  run(inputs, bucket = 0) {
    const { inputs: takes, outputs: gives } = this.buckets[bucket];
    const { ins, outs, inTable, outTable } = (this.#pointers[bucket] ??= this.#place(takes, gives));
    takes.forEach((t, i) => {
      const given = inputs[t.name];
      if (!(given instanceof ARRAYS[t.dtype]) || given.byteLength !== t.bytes)
        throw new TypeError(`input '${t.name}' must be a ${ARRAYS[t.dtype].name} of shape [${t.shape}]`);
      this.#bytes(ins[i], t.bytes).set(new Uint8Array(given.buffer, given.byteOffset, given.byteLength));
    });
    this.#check(this.#functions.tc_run_bucket(this.#model, BigInt(bucket), inTable, outTable));
    return Object.fromEntries(gives.map((t, i) => {
      const shape = this.#shape(i, t.shape.length);
      const data = new ARRAYS[t.dtype](this.#bytes(outs[i], t.bytes).slice().buffer);
      return [t.name, { data: data.subarray(0, shape.reduce((a, b) => a * b, 1)), shape }];
    }));
  }

  #place(takes, gives) {
    const ins = takes.map((t) => this.#allocate(t.bytes)), outs = gives.map((t) => this.#allocate(t.bytes));
    const table = (places) => {
      const at = this.#allocate(4 * places.length);
      places.forEach((place, i) => this.#view().setUint32(at + 4 * i, place, true));
      return at;
    };
    return { ins, outs, inTable: table(ins), outTable: table(outs) };
  }

  // The structure tc_tensor of the runtime, with pointers of 32 bits.
  #tensors(bucket, count, describe) {
    return Array.from({ length: Number(count) }, (_, i) => {
      const at = describe(BigInt(bucket), BigInt(i)) >>> 0, v = this.#view();
      const shape = Array.from({ length: v.getInt32(at + 12, true) }, (_, d) =>
        Number(v.getBigInt64(v.getUint32(at + 8, true) + 8 * d, true)));
      return { name: this.#text(v.getUint32(at, true)), dtype: this.#text(v.getUint32(at + 4, true)), shape,
               bytes: Number(v.getBigInt64(at + 16, true)) };
    });
  }

  // What the last run made of an output: smaller than declared where the shape depends on data.
  #shape(output, rank) {
    const place = (this.#shapePlace ??= this.#allocate(8 * 64));
    this.#check(this.#functions.tc_output_shape(this.#model, BigInt(output), place));
    return Array.from({ length: rank }, (_, d) => Number(this.#view().getBigInt64(place + 8 * d, true)));
  }

  // Views are made anew each time: memory that grows leaves old ones empty.
  #view() { return new DataView(this.#functions.memory.buffer); }
  #bytes(at, count) { return new Uint8Array(this.#functions.memory.buffer, at, count); }

  #allocate(bytes) {
    const at = this.#functions.tc_allocate(bytes) >>> 0;
    if (!at) throw new RangeError(`no room for ${bytes} bytes more in the module's memory`);
    return at;
  }

  #text(at) {
    const memory = new Uint8Array(this.#functions.memory.buffer);
    return new TextDecoder().decode(memory.subarray(at, memory.indexOf(0, at)));
  }

  #check(status) {
    if (status) throw new Error(this.#text(this.#functions.tc_status_text(status) >>> 0));
  }
}
