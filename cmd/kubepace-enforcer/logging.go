// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime/pkg/log"
)

// setupLogging sends everything that logs in this process (ours, controller-runtime's, client-go's and the standard
// library's) through one zap logger, as JSON on standard error.
func setupLogging(level zapcore.Level) (log logr.Logger, flush func()) {
	config := zap.NewProductionConfig()
	config.Level = zap.NewAtomicLevelAt(level)
	config.Sampling = nil // a limit that is not enforced is logged once: it must not be the line that is left out
	config.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	config.DisableStacktrace = true
	config.DisableCaller = true
	// The configuration above is constant: it cannot fail.
	logger := zap.Must(config.Build())
	restore := zap.RedirectStdLog(logger)
	log = zapr.NewLogger(logger)
	ctrl.SetLogger(log)
	klog.SetLogger(log.WithName("client-go"))
	return log.WithName("enforcer"), func() {
		restore()
		// Standard error cannot be synced everywhere.
		_ = logger.Sync()
	}
}
