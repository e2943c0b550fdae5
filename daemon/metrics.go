// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// NewRegistry returns a registry that collects what is known of any Go
// process.
func NewRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	return r
}

// StatsCollector makes metrics of a struct of numbers, such as the Stats of a
// package that knows nothing of Prometheus: each exported field becomes
// namespace_field_name. Integers and durations are counters, with _total at
// the end; floats, booleans and whatever carries the tag metric:"gauge" are
// gauges. Durations become seconds. The tag help explains a field; structs
// inside contribute their fields under their name, embedded ones without it;
// strings are passed over.
//
//	type Stats struct {
//		Hits   uint64 `help:"Blocks found in the cache."`
//		Blocks int64  `help:"Blocks in the cache." metric:"gauge"`
//	}
//
// It fails where a field is none of these.
func StatsCollector[S any](namespace string, stats func() S) (prometheus.Collector, error) {
	c := &statsCollector{stats: func() reflect.Value { return reflect.ValueOf(stats()) }}
	if err := c.add(namespace, reflect.TypeFor[S](), nil); err != nil {
		return nil, fmt.Errorf("make metrics %s: %w", namespace, err)
	}
	return c, nil
}

type statsCollector struct {
	stats  func() reflect.Value
	fields []statsField
}

// statsField is a metric and where in the struct its value is.
type statsField struct {
	index []int
	desc  *prometheus.Desc
	kind  prometheus.ValueType
}

// add appends the fields of t, which lies at index in the whole struct.
func (c *statsCollector) add(prefix string, t reflect.Type, index []int) error {
	if t.Kind() != reflect.Struct {
		return fmt.Errorf("%v is no struct", t)
	}
	for f := range t.Fields() {
		if !f.IsExported() {
			continue
		}
		at := append(index[:len(index):len(index)], f.Index...)
		name := prefix + "_" + snake(f.Name)
		if f.Anonymous {
			name = prefix
		}
		switch f.Type.Kind() {
		case reflect.String: // for people; no metric
			continue
		case reflect.Struct:
			if err := c.add(name, f.Type, at); err != nil {
				return err
			}
			continue
		default:
		}
		field, err := newStatsField(name, f, at)
		if err != nil {
			return err
		}
		c.fields = append(c.fields, field)
	}
	return nil
}

func newStatsField(name string, f reflect.StructField, index []int) (statsField, error) {
	if _, ok := number(reflect.Zero(f.Type)); !ok {
		return statsField{}, fmt.Errorf("field %s of type %v is no number", f.Name, f.Type)
	}
	if f.Type == reflect.TypeFor[time.Duration]() {
		name += "_seconds"
	}
	kind := prometheus.CounterValue
	switch tag := f.Tag.Get("metric"); {
	case tag == "gauge", f.Type.Kind() == reflect.Bool, f.Type.Kind() == reflect.Float64:
		kind = prometheus.GaugeValue
	case tag == "", tag == "counter":
		name += "_total"
	default:
		return statsField{}, fmt.Errorf("field %s: unknown kind of metric %q", f.Name, tag)
	}
	return statsField{index, prometheus.NewDesc(name, f.Tag.Get("help"), nil, nil), kind}, nil
}

// number returns the value of v in base units.
func number(v reflect.Value) (float64, bool) {
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		return time.Duration(v.Int()).Seconds(), true
	case v.CanInt():
		return float64(v.Int()), true
	case v.CanUint():
		return float64(v.Uint()), true
	case v.CanFloat():
		return v.Float(), true
	case v.Kind() == reflect.Bool && v.Bool():
		return 1, true
	}
	return 0, v.Kind() == reflect.Bool
}

// snake turns CacheHits into cache_hits, and HTTPErrors into http_errors.
func snake(name string) string {
	var b strings.Builder
	runes := []rune(name)
	for i, r := range runes {
		starts := i > 0 && unicode.IsUpper(r) && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1]))
		if starts {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// Describe implements prometheus.Collector.
func (c *statsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.fields {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (c *statsCollector) Collect(ch chan<- prometheus.Metric) {
	stats := c.stats()
	for _, f := range c.fields {
		n, _ := number(stats.FieldByIndex(f.index))
		ch <- prometheus.MustNewConstMetric(f.desc, f.kind, n)
	}
}
